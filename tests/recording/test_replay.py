"""A recording is judged by the core that judged it then: in its own time, under any policy, in constant memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.config.settings import Observe, Settings, WatchSetting
from nats_backpressure.core.model import ConsumerConfig, Event
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, EventType, Status
from nats_backpressure.recording.compare import Difference, StatusComparison
from nats_backpressure.recording.decoder import HintsDecoded, StreamAbsenceDecoded
from nats_backpressure.recording.format import (
    ConsumerLine,
    HintsLine,
    Line,
    MissingLine,
    ReadLine,
    SampleLine,
    StreamNumbers,
)
from nats_backpressure.recording.replay import Replay
from nats_backpressure.recording.time_gaps import TICK
from tests.support.policies import entry
from tests.support.recordings import MONO, SUBJECT, WALL, beginning, minutes, observed, reading, still

KEY = ConsumerKey("ORDERS", "worker")


def judged(lines: Iterable[Line], *policies: PolicyEntry, only: str | None = None, **settings: Any) -> list[Event]:
    told: list[Event] = []
    quiet = entry(">", alert_on_active=False)
    replay = Replay(Settings(policies=policies or (quiet,), **settings), told.append, only)
    for thing in observed(lines):
        replay.take(thing)
    return told


def steps(events: Iterable[Event]) -> list[tuple[float, str, str]]:
    """When (in seconds since the beginning), what, and where to."""
    return [(round(event.at - WALL, 3), event.type.value, event.now.word) for event in events]


def burst() -> list[Line]:
    """One second of calm, two of a queue and a full worker, then calm; a reading every 0.1 s."""
    told = [*beginning()]
    for n in range(60):
        at = n / 10
        busy = 1 <= at < 3
        told += reading(at, 2000, 600, 0) if busy else reading(at, 0, 0, 2600 if at >= 3 else 0)
    return told


def test_a_burst_is_told_with_its_reasons_and_ends_after_the_hold() -> None:
    active, recovery = judged(burst())
    assert (active.type, active.subject, active.at) == (EventType.ACTIVE, SUBJECT, WALL + 1)
    assert active.reasons == ("pending", "inflight")
    assert active.pressure == 2.0
    assert (recovery.type, recovery.now, recovery.at) == (EventType.RECOVERY, Status.INACTIVE, WALL + 4)
    assert (active.seq, recovery.seq) == (1, 2)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"pending": {"overload": 5000}}, ["warning", "inactive"], id="one signal is a warning"),
        pytest.param({"active_signals": 1}, ["active", "inactive"], id="one signal is enough"),
        pytest.param(
            {"pending": {"overload": 5000}, "inflight": {"overload": 5000}}, [], id="neither is above its mark"
        ),
        pytest.param({"recovery_hold_seconds": 10}, ["active"], id="the hold outlasts the recording"),
    ],
)
def test_another_policy_comes_to_another_verdict(fields: dict[str, Any], expected: list[str]) -> None:
    assert [event.now.word for event in judged(burst(), entry(SUBJECT, alert_on_active=False, **fields))] == expected


def test_only_the_subjects_asked_for_are_judged() -> None:
    assert judged(burst(), only="orders.*") == judged(burst())
    assert judged(burst(), only="invoices.>") == []


@pytest.mark.parametrize(
    "watch",
    [
        pytest.param(WatchSetting("INVOICES"), id="another stream"),
        pytest.param(WatchSetting("*", ("audit-*",)), id="other consumers"),
    ],
)
def test_what_is_not_watched_is_not_judged(watch: WatchSetting) -> None:
    assert judged(burst(), watch=(watch,)) == []


class TestTimeThatNobodyRecorded:
    """A gap makes a subject stale, then unknown, when it would have; and it is searched, not walked."""

    GAP = (*beginning(), *reading(0.0), *reading(1.0), *reading(3600.0))

    def test_a_gap_is_told_as_it_would_have_been_told_then(self) -> None:
        lost, restored = steps(judged(self.GAP))
        assert lost == (31.0, "monitoring_lost", "inactive")
        assert restored == (3600.0, "monitoring_restored", "inactive")

    def test_a_gap_as_long_as_was_planned_is_none(self) -> None:
        hourly = (*beginning(), *reading(0.0), *reading(3600.0), *reading(7200.0))
        assert [event.type for event in judged(hourly)] == [
            EventType.MONITORING_LOST,
            EventType.MONITORING_RESTORED,
        ] * 2
        assert judged(hourly, observe=Observe(max_interval_ms=3_600_000)) == []

    def test_a_gap_of_years_takes_as_many_steps_as_one_of_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def taken(gap: float) -> int:
            count = 0
            replay = Replay(Settings(), lambda event: None)
            stays = replay._registry.stays

            def counted(subject: str, at: Now) -> bool:
                nonlocal count
                count += 1
                return stays(subject, at)

            monkeypatch.setattr(replay._registry, "stays", counted)
            for thing in observed((*beginning(), *reading(0.0), *reading(gap))):
                replay.take(thing)
            return count

        assert taken(3 * 365 * 86_400.0) < 4 * taken(60.0)

    @pytest.mark.parametrize("gap", [7.3, 31.0, 33.3, 100.0, 3700.0], ids=lambda gap: f"{gap:.0f} s")
    def test_searching_a_gap_finds_what_walking_it_finds(self, gap: float) -> None:
        fields = {"alerts": [{"name": "long", "when": {"pending_above": 10}, "for_seconds": 5, "severity": "warning"}]}
        ends = (*beginning(), *reading(0.0), *reading(1.0, 2000, 600), *reading(1.0 + gap))
        searched = judged(ends, entry(SUBJECT, **fields))
        walked: list[Event] = []
        replay = Replay(Settings(policies=(entry(SUBJECT, **fields),)), walked.append)
        *before, last = observed(ends)
        for thing in before:
            replay.take(thing)
        for n in range(1, int(gap / TICK) + 1):
            # A hint of a consumer that is not there makes time pass and does nothing else.
            at = 1.0 + n * TICK
            replay.take(HintsDecoded(Now(MONO + at, WALL + at), ConsumerKey("NO", "body"), (), 0, 0))
        replay.take(last)
        assert steps(searched) == steps(walked)


class TestWhatComesAndGoes:
    def test_a_consumer_that_two_whole_readings_lack_is_gone(self) -> None:
        gone = [ReadLine(0, (MONO + at, WALL + at), left=(1,)) for at in (2.0, 3.0)]
        assert steps(judged([*beginning(), *reading(0.0), *reading(1.0), *gone])) == [
            (3.0, "monitoring_lost", "inactive")
        ]

    def test_one_that_a_part_of_a_reading_lacks_is_not(self) -> None:
        partly = [ReadLine(0, (MONO + at, WALL + at), out=(1,), partly=True) for at in (2.0, 3.0, 4.0)]
        assert judged([*beginning(), *reading(0.0), *reading(1.0), *partly]) == []

    def test_a_stream_that_twice_does_not_exist_is_gone_with_its_consumers(self) -> None:
        gone = [MissingLine("ORDERS", (MONO + at, WALL + at)) for at in (2.0, 3.0)]
        told: list[Event] = []
        replay = Replay(Settings(), told.append)
        for thing in observed([*beginning(), *reading(0.0), *gone]):
            replay.take(thing)
        assert steps(told) == [(3.0, "monitoring_lost", "inactive")]
        replay.take(StreamAbsenceDecoded(Now(MONO + 3 * 3600, WALL + 3 * 3600), "ORDERS"))
        assert replay.time_in() == {}
        assert replay.forgotten["inactive"] == pytest.approx(3.0)
        assert not replay._intake._trackers and not replay._registry.streams

    def test_one_that_appears_before_a_stream_full_of_messages_reads_history(self) -> None:
        begun, stream, consumer = beginning()
        before = ReadLine(0, (MONO - 1, WALL - 1), StreamNumbers(1, 2000, 2000))
        arrived = [consumer, *reading(0.0, 2000)]
        (found,) = judged([begun, stream, *arrived])
        assert found.reading is not None and not found.reading.backfilling
        (appeared,) = judged([begun, stream, before, *arrived])
        assert appeared.reading is not None and appeared.reading.backfilling

    def test_metadata_rules_where_it_is_trusted(self) -> None:
        own = ConsumerConfig(metadata=(("backpressure.active_signals", "3"),))
        begun, stream, consumer = beginning()
        assert isinstance(consumer, ConsumerLine)
        told = [begun, stream, replace(consumer, config=own), *burst()[3:]]
        assert judged(told)[0].now is Status.ACTIVE
        assert judged(told, trust_consumer_metadata=True)[0].now is Status.WARNING


def test_ack_metrics_are_the_latency_they_were() -> None:
    told = [*beginning(), *reading(0.0, 0, 20, 100)]
    for n in range(1, 20):
        at = n / 2
        told.append(HintsLine(1, (MONO + at - 0.1, WALL + at - 0.1), acks=((0.05, 1, 90), (6.0, 1, 10))))
        told += reading(at, 0, 20, 100 + 100 * n)
    (event,) = judged(told)
    assert event.reasons == ("latency_p95",)
    assert event.reading is not None and event.reading.latency_source == "sampled"
    assert event.reading.p95 == pytest.approx(6000, rel=0.01)


def test_a_consumer_read_by_itself_counts() -> None:
    at = (MONO + 1.5, WALL + 1.5)
    single = SampleLine(1, at=at, pending=900, inflight=600, delivered=(600, 600))
    look = replace(reading(1.0, 900, 600)[1], partly=True, out=(1,))
    assert steps(judged([*beginning(), *reading(0.0), look, single])) == [(1.5, "backpressure_warning", "warning")]


def test_time_in_each_status_adds_up_to_the_recording() -> None:
    replay = Replay(Settings(policies=(entry(">", alert_on_active=False),)), lambda event: None)
    for thing in observed(burst()):
        replay.take(thing)
    spent = replay.time_in()[SUBJECT]
    assert spent == pytest.approx({"unknown": 0, "inactive": 2.9, "active": 3.0})
    assert replay.told == {"backpressure_active": 1, "recovery": 1}
    assert (replay.samples, replay.set_aside) == (60, 0)


def peak(lines: Iterable[Line]) -> int:
    """Bytes in use at most while a recording is judged."""
    replay = Replay(Settings(), lambda event: None)
    tracemalloc.start()
    try:
        for thing in observed(lines):
            replay.take(thing, 60.0)
        assert replay.told["recovery"] == replay.told["backpressure_warning"] > 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SLACK = 64 * 1024
"""Bytes that bounded windows and the interpreter's free lists may still fill: a few for every sample would be more."""


def test_four_days_take_no_more_memory_than_one() -> None:
    peak(minutes(1440))  # what is made once and kept by the interpreter
    assert peak(minutes(4 * 1440)) < peak(minutes(1440)) + SLACK


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_month_takes_no_more_memory_than_three_days() -> None:
    peak(minutes(1440))
    assert peak(minutes(30 * 1440)) < peak(minutes(3 * 1440)) + SLACK


class TestDifferences:
    """Two policies over one recording: where they come to different statuses, and for how long."""

    def compared(self, lines: Iterable[Line], *policies: PolicyEntry) -> tuple[list[Difference], dict[str, float]]:
        told: list[Difference] = []
        comparison = StatusComparison(told.append)
        both = [
            Replay(Settings(policies=(policy,)), lambda event, which=which: comparison.add_event(which, event))
            for which, policy in enumerate(policies)
        ]
        last = None
        for last in observed(lines):
            for each in both:
                each.take(last)
            comparison.compare()
        assert last is not None
        comparison.finish(last.at.wall)
        return told, dict(comparison.seconds)

    def test_the_same_policy_twice_differs_nowhere(self) -> None:
        assert self.compared(burst(), entry(">"), entry(">")) == ([], {})

    def test_each_change_is_told_until_they_agree_again(self) -> None:
        told, seconds = self.compared(burst(), entry(">"), entry(">", pending={"overload": 5000}))
        apart, together = told
        assert (apart.at - WALL, apart.statuses) == (1.0, (Status.ACTIVE, Status.WARNING))
        assert apart.reasons == (("pending", "inflight"), ("inflight",)) and apart.lasted is None
        assert (together.at - WALL, together.statuses) == (4.0, (Status.INACTIVE, Status.INACTIVE))
        assert together.lasted == pytest.approx(3.0)
        assert seconds == pytest.approx({SUBJECT: 3.0})

    def test_what_differs_at_the_end_is_counted_to_the_end(self) -> None:
        told, seconds = self.compared(burst(), entry(">"), entry(">", recovery_hold_seconds=60))
        assert [found.statuses for found in told] == [(Status.INACTIVE, Status.ACTIVE)]
        assert seconds == pytest.approx({SUBJECT: 1.9})

    def test_the_same_step_in_a_gap_is_no_difference(self) -> None:
        lines = [*beginning(), *reading(0.0), *reading(3600.0), still(3600.1)]
        assert self.compared(lines, entry(">"), entry(">")) == ([], {})
