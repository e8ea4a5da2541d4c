"""The list of `status`: which subjects it has, in which order, and which columns fit."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.cli.status_list import HEADERS, StatusFilter, fitting, list_row, totals_line
from nats_backpressure.protocol.messages import Metrics, Override, Status

STATUSES = (
    Status("orders.paid", "active", pressure=1.5, reasons=("pending",), metrics=Metrics(pending_messages=1500)),
    Status("orders.created", "active", pressure=3.0, metrics=Metrics(pending_messages=3000, inflight_messages=7)),
    Status("billing.tenant-with-a-long-name.invoices.created", "inactive", pressure=0.1),
    Status("audit", "unknown", freshness="unknown"),
    Status("shop", "warning", override=Override("open", "2026-11-26T18:00:00.000Z"), reasons=("override",)),
)


@pytest.mark.parametrize(
    ("chosen", "subjects"),
    [
        (StatusFilter(), "orders.created orders.paid shop audit billing"),
        (StatusFilter("orders.*"), "orders.created orders.paid"),
        (StatusFilter(statuses=("warning", "unknown")), "shop audit"),
        (StatusFilter(sort="subject"), "audit billing orders.created orders.paid shop"),
        (StatusFilter(sort="inflight", statuses=("active",)), "orders.created orders.paid"),
        (StatusFilter("none.>"), ""),
    ],
    ids=["urgency", "pattern", "statuses", "subject", "inflight", "none"],
)
def test_what_is_shown_and_in_which_order(chosen: StatusFilter, subjects: str) -> None:
    names = [each.subject.split(".tenant")[0] for each in chosen.matching(STATUSES)]
    assert names == subjects.split()


def test_the_totals_are_of_all_subjects() -> None:
    counts = "5 subjects: 2 active, 1 warning, 1 unknown, 1 inactive"
    assert totals_line(STATUSES, STATUSES, 5) == counts
    assert totals_line(STATUSES, STATUSES[:2], 1) == f"{counts}; 2 match; 1 shown"
    assert totals_line((), (), 0) == "no subject is watched"


def test_an_unknown_subject_shows_that_it_has_no_consumer() -> None:
    assert list_row(STATUSES[3])[-1] == "no consumer is known"
    assert list_row(replace(STATUSES[3], consumers_total=1))[-1] == ""


def test_an_override_shows_its_direction_and_its_end() -> None:
    assert list_row(STATUSES[4])[-1] == "override: open until 2026-11-26T18:00:00.000Z"
    assert list_row(replace(STATUSES[4], mode="observe"))[-1] == list_row(STATUSES[4])[-1], (
        "it is in force all the same"
    )
    assert list_row(replace(STATUSES[4], mode="observe", override=None))[-1].startswith("dry run")


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (60, "subject status"),
        (80, "subject status pressure"),
        (100, "subject status pressure why"),
        (200, "subject status pressure pending inflight freshness why"),
    ],
)
def test_columns_give_way_before_a_subject_is_cut(width: int, columns: str) -> None:
    rows = [list_row(each) for each in STATUSES]
    headers, shown = fitting(HEADERS, rows, width, between=3)
    assert " ".join(headers) == columns, "without latency and drain: nothing is to be seen there"
    assert [row[0] for row in shown] == [row[0] for row in rows]
    assert fitting(HEADERS, [], width) == (["subject", "status"], [])
