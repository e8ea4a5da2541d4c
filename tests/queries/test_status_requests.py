"""Requests for statuses, lists, policies and the router's own format."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.schema import Guard, Override
from nats_backpressure.protocol.requests import ListRequest
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.queries.decisions import DecisionService, validate_policy
from nats_backpressure.runtime.slices import SLICE
from tests.fakes.clock import FakeClock
from tests.fakes.view import NOW, OVERLOADED, POLICY, SUBJECT, FakeServiceView, decision_service, member, subject


@pytest.mark.parametrize(
    ("values", "metrics", "thresholds"),
    [
        pytest.param({}, (0, 0, 0), (1000, 5000, 500), id="idle: what the router answers there"),
        pytest.param({"latency": 1354.9, "inflight": None}, (0, 1355, 0), (1000, 5000, 500), id="ack none"),
        pytest.param(
            {"latency": float("nan"), "cap": 55}, (0, 0, 0), (1000, 5000, 49), id="a mark between two numbers"
        ),
    ],
)
def test_the_alias_returns_whole_numbers_as_the_router_does(
    values: dict[str, Any], metrics: tuple[int, ...], thresholds: tuple[int, ...]
) -> None:
    data = msgspec.to_builtins(decision_service(FakeServiceView(subject(member(**values)))).alias(SUBJECT, NOW))["data"]
    reply = tuple(data["metrics"].values()), tuple(data["thresholds"].values())
    assert reply == (metrics, thresholds)
    assert all(type(number) is int for numbers in reply for number in numbers)


@pytest.mark.parametrize(("lasts", "stored", "expected"), [(60.0, (), ("override",)), (-1.0, ("override",), ())])
def test_an_override_is_a_reason_exactly_while_it_is_in_force(
    lasts: float, stored: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    policy = replace(POLICY, override=(Override("reject", NOW.wall + lasts),))
    state = subject(member(policy=policy))
    decisions = decision_service(FakeServiceView(replace(state, record=replace(state.record, reasons=stored))))
    reply = decisions.status(SUBJECT, NOW)
    assert (reply.reasons, reply.override is not None) == (expected, bool(expected))


async def test_a_list_is_sorted_and_paged() -> None:
    decisions = decision_service(FakeServiceView(*(subject(member(), name=name) for name in ("c", "a", "b"))))
    first = await decisions.status_list(ListRequest(limit=2), NOW)
    assert ([s.subject for s in first.subjects], first.total, first.next_offset) == (["a", "b"], 3, 2)
    last = await decisions.status_list(ListRequest(offset=2, limit=2), NOW)
    assert ([s.subject for s in last.subjects], last.next_offset) == (["c"], None)
    assert (await decisions.status_list(ListRequest(offset=9), NOW)).subjects == ()


async def test_a_page_of_statuses_fits_into_a_message() -> None:
    crowd = [member(f"consumer-number-{n}") for n in range(20)]
    decisions = decision_service(FakeServiceView(*(subject(*crowd, name=f"s{n:04}") for n in range(300))))
    reply = await decisions.status_list(ListRequest(limit=1000), NOW)
    assert 2**20 < len(msgspec.json.encode(reply)) < 2**20 + 20_000
    assert reply.next_offset == len(reply.subjects) < 300


async def test_a_long_list_gives_others_turns_and_leaves_out_what_is_dropped_meanwhile() -> None:
    class Running(FakeClock):
        """Each look takes half a slice."""

        def now(self) -> Now:
            self.advance(SLICE / 2)
            return super().now()

    view = FakeServiceView(*(subject(member(), name=f"s{n:02}") for n in range(40)))
    listing = asyncio.ensure_future(DecisionService(view, Running()).status_list(ListRequest(limit=30), NOW))
    turns = 0
    while not listing.done():
        await asyncio.sleep(0)
        turns += 1
        if turns == 5:
            del view.subjects["s29"], view.subjects["s39"]
    reply = await listing
    assert turns > 10
    assert [s.subject for s in reply.subjects] == [f"s{n:02}" for n in range(29)]
    assert (reply.total, reply.next_offset) == (40, 30)


def test_a_policy_has_its_sources_and_the_consumers_that_differ() -> None:
    entries = (
        PolicyEntry(("beamline.>",), ("*",), (("retry_after_seconds", 7),)),
        PolicyEntry((SUBJECT,), ("slow",), (("retry_after_seconds", 9),)),
    )
    reply = decision_service(FakeServiceView(subject(member("c"), member("slow")), policies=entries)).policy(
        SUBJECT, NOW
    )
    assert (reply.policy["retry_after_seconds"], reply.sources["retry_after_seconds"]) == (7, "file")
    assert reply.sources["pending.warn"] == "default"
    assert [(c.consumer, c.policy["retry_after_seconds"]) for c in reply.consumers] == [("slow", 9)]


def test_a_policy_is_validated_over_the_default() -> None:
    good, bad = (
        validate_policy({"retry_after_seconds": 7}, Guard()),
        validate_policy({"pending": {"warn": 5000}}, Guard()),
    )
    assert good.effective is not None
    assert (good.valid, good.errors, good.effective["retry_after_seconds"]) == (True, (), 7)
    assert (bad.valid, bad.effective, [problem.path for problem in bad.errors]) == (False, None, ["pending.warn"])


def test_the_alias_has_the_format_of_the_router() -> None:
    reply = msgspec.to_builtins(decision_service(FakeServiceView(subject(member(**OVERLOADED)))).alias(SUBJECT, NOW))
    assert reply == {
        "success": True,
        "data": {
            "subject": SUBJECT,
            "status": "active",
            "metrics": {"pending_messages": 1500, "latency_p95_ms": 6000, "inflight_messages": 100},
            "thresholds": {"queue_overload": 1000, "latency_overload_ms": 5000, "inflight_overload": 500},
            "policy": {"retry_after_seconds": 30, "max_retry_attempts": 3},
            "timestamp": 1_767_225_600_000,
        },
    }


@pytest.mark.parametrize("swept", [NOW.mono, None], ids=["unwatched", "before the first sweep"])
def test_the_alias_returns_unknown_for_what_is_not_known(swept: float | None) -> None:
    view = FakeServiceView()
    view.newest_read_at = swept
    data = msgspec.to_builtins(decision_service(view).alias("nobody", NOW))["data"]
    assert (data["status"], set(data["metrics"].values()), data["thresholds"]["queue_overload"]) == (
        "unknown",
        {None},
        1000,
    )
