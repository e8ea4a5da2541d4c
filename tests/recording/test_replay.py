"""A recording is evaluated by the core that the service uses: in its own time, under any policy, in constant memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings, WatchSetting
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import EventType, Status
from nats_backpressure.recording.decoder import StreamAbsenceDecoded
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
from tests.recording.replays import burst, evaluated, steps
from tests.support.policies import entry
from tests.support.recordings import MONO, SUBJECT, WALL, beginning, minutes, observed, reading


def test_a_burst_is_reported_with_its_reasons_and_ends_after_the_hold() -> None:
    active, recovery = evaluated(burst())
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
def test_another_policy_gives_other_events(fields: dict[str, Any], expected: list[str]) -> None:
    assert [event.now.word for event in evaluated(burst(), entry(SUBJECT, alert_on_active=False, **fields))] == expected


def test_only_the_chosen_subjects_are_evaluated() -> None:
    assert evaluated(burst(), only="orders.*") == evaluated(burst())
    assert evaluated(burst(), only="invoices.>") == []


@pytest.mark.parametrize(
    "watch",
    [
        pytest.param(WatchSetting("INVOICES"), id="another stream"),
        pytest.param(WatchSetting("*", ("audit-*",)), id="other consumers"),
    ],
)
def test_what_the_settings_do_not_watch_is_not_evaluated(watch: WatchSetting) -> None:
    assert evaluated(burst(), watch=(watch,)) == []


class TestMembership:
    def test_a_consumer_missing_from_two_whole_readings_is_removed(self) -> None:
        gone = [ReadLine(0, (MONO + at, WALL + at), left=(1,)) for at in (2.0, 3.0)]
        assert steps(evaluated([*beginning(), *reading(0.0), *reading(1.0), *gone])) == [
            (3.0, "monitoring_lost", "inactive")
        ]

    def test_a_consumer_missing_from_a_partial_reading_is_not_removed(self) -> None:
        partly = [ReadLine(0, (MONO + at, WALL + at), out=(1,), partly=True) for at in (2.0, 3.0, 4.0)]
        assert evaluated([*beginning(), *reading(0.0), *reading(1.0), *partly]) == []

    def test_a_stream_that_is_missing_twice_is_removed_with_its_consumers(self) -> None:
        gone = [MissingLine("ORDERS", (MONO + at, WALL + at)) for at in (2.0, 3.0)]
        events: list[SubjectEvent] = []
        replay = Replay(Settings(), events.append)
        for thing in observed([*beginning(), *reading(0.0), *gone]):
            replay.process(thing)
        assert steps(events) == [(3.0, "monitoring_lost", "inactive")]
        replay.process(StreamAbsenceDecoded(Now(MONO + 3 * 3600, WALL + 3 * 3600), "ORDERS"))
        assert replay.time_in() == {}
        assert replay.removed_time_in["inactive"] == pytest.approx(3.0)
        assert not replay._intake._trackers and not replay._registry.streams

    def test_a_consumer_that_appears_on_a_full_stream_reads_history(self) -> None:
        header, stream, consumer = beginning()
        before = ReadLine(0, (MONO - 1, WALL - 1), StreamNumbers(1, 2000, 2000))
        arrived = [consumer, *reading(0.0, 2000)]
        (events,) = evaluated([header, stream, *arrived])
        assert events.reading is not None and not events.reading.backfilling
        (appeared,) = evaluated([header, stream, before, *arrived])
        assert appeared.reading is not None and appeared.reading.backfilling

    def test_metadata_applies_where_it_is_trusted(self) -> None:
        own = ConsumerConfig(metadata=(("backpressure.active_signals", "3"),))
        header, stream, consumer = beginning()
        assert isinstance(consumer, ConsumerLine)
        events = [header, stream, replace(consumer, config=own), *burst()[3:]]
        assert evaluated(events)[0].now is Status.ACTIVE
        assert evaluated(events, trust_consumer_metadata=True)[0].now is Status.WARNING


def test_recorded_ack_metrics_give_the_latency() -> None:
    events = [*beginning(), *reading(0.0, 0, 20, 100)]
    for n in range(1, 20):
        at = n / 2
        events.append(HintsLine(1, (MONO + at - 0.1, WALL + at - 0.1), acks=((0.05, 1, 90), (6.0, 1, 10))))
        events += reading(at, 0, 20, 100 + 100 * n)
    (event,) = evaluated(events)
    assert event.reasons == ("latency_p95",)
    assert event.reading is not None and event.reading.latency_source == "sampled"
    assert event.reading.p95 == pytest.approx(6000, rel=0.01)


def test_a_consumer_read_alone_counts() -> None:
    at = (MONO + 1.5, WALL + 1.5)
    single = SampleLine(1, at=at, pending=900, inflight=600, delivered=(600, 600))
    look = replace(reading(1.0, 900, 600)[1], partly=True, out=(1,))
    assert steps(evaluated([*beginning(), *reading(0.0), look, single])) == [(1.5, "backpressure_warning", "warning")]


def test_time_in_each_status_adds_up_to_the_recording() -> None:
    replay = Replay(Settings(policies=(entry(">", alert_on_active=False),)), lambda event: None)
    for thing in observed(burst()):
        replay.process(thing)
    spent = replay.time_in()[SUBJECT]
    assert spent == pytest.approx({"unknown": 0, "inactive": 2.9, "active": 3.0})
    assert replay.events == {"backpressure_active": 1, "recovery": 1}
    assert (replay.samples, replay.implausible) == (60, 0)


def peak(lines: Iterable[Line]) -> int:
    """Bytes in use at most while a recording is evaluated."""
    replay = Replay(Settings(), lambda event: None)
    tracemalloc.start()
    try:
        for thing in observed(lines):
            replay.process(thing, 60.0)
        assert replay.events["recovery"] == replay.events["backpressure_warning"] > 0
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SLACK = 64 * 1024
"""Bytes that bounded windows and the interpreter's free lists may still fill: a few for every sample would be more."""


@pytest.mark.no_cover  # tracing is slow, and its memory is not ours
def test_four_days_need_no_more_memory_than_one() -> None:
    peak(minutes(1440))  # what the interpreter allocates once
    assert peak(minutes(4 * 1440)) < peak(minutes(1440)) + SLACK


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_month_needs_no_more_memory_than_three_days() -> None:
    peak(minutes(1440))
    assert peak(minutes(30 * 1440)) < peak(minutes(3 * 1440)) + SLACK
