"""Counters, and a logger that reports each problem once."""

from __future__ import annotations

import logging

import pytest

from nats_backpressure.client.stats import MAX_REPORTED, OnceLogger, Stats


def test_on_count_is_called_for_each_count_until_it_raises(caplog: pytest.LogCaptureFixture) -> None:
    counts: list[tuple[str, str]] = []

    def on_count(name: str, subject: str) -> None:
        counts.append((name, subject))
        if name == "shed":
            raise RuntimeError

    stats = Stats(on_count=on_count)
    for name in ("admitted", "shed", "admitted"):
        stats.count(name, "orders")
    assert counts == [("admitted", "orders"), ("shed", "orders")]
    assert (stats.admitted, stats.shed) == (2, 1)
    assert len(caplog.records) == 1


def test_a_problem_is_logged_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logger = OnceLogger()
    logger.resolve("outage", "", "never reported")
    for _ in range(3):
        logger.warn("outage", "", "it began")
    logger.resolve("outage", "", "it is over")
    logger.warn("outage", "", "it began again")
    assert [record.message for record in caplog.records] == ["it began", "it is over", "it began again"]


def test_what_was_reported_is_bounded_by_kind_and_the_oldest_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    logger = OnceLogger()
    for n in range(MAX_REPORTED + 5):
        logger.warn("unwatched", str(n), "not watched")
    assert len(caplog.records) == MAX_REPORTED + 1, "one more at once, then one in a while"
    logger.warn("outage", "", "it began")
    assert caplog.records[-1].message == "it began", "another kind is not held back"
