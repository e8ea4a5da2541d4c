"""Requests about the past: answered from memory if it is complete, from the stream otherwise, never guessed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.event_publisher import JetStreamEventPublisher
from nats_backpressure.adapters.nats.event_reader import JetStreamEventReader
from nats_backpressure.core.model.event import SubjectAlert, SubjectEvent
from nats_backpressure.core.subject.record import Recoveries, Totals
from nats_backpressure.core.time_windows import Measure, WindowSummary
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.metrics_windows import MetricsRequest
from nats_backpressure.protocol.requests import BadRequest, EventsRequest, HistoryRequest, RequestRefused
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import EventType, Status
from nats_backpressure.queries import history as rooms
from nats_backpressure.queries.event_cache import EventCache, parse_event
from nats_backpressure.queries.history import DAY, HistoryQueries
from nats_backpressure.runtime.clock import SystemClock
from tests.fakes.clock import settled
from tests.fakes.event_log import T0, FakeEventLog, encoded_event, event
from tests.fakes.view import NOW, OVERLOADED, SUBJECT, FakeServiceView, decision_service, member, subject
from tests.simulations import stored_samples
from tests.support.background import meanwhile
from tests.support.sidecar import eventually


class Clock:
    """It stands still, whatever is slept; there is no jitter."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> Now:
        return NOW

    def mono(self) -> float:
        return NOW.mono

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def random(self) -> float:
        return 1.0


class Window:
    """The past of one subject; events from now on are in memory, earlier ones only in the stream."""

    def __init__(self, *stored: bytes, recent: int = 0, view: FakeServiceView | None = None) -> None:
        self.stream = FakeEventLog(stored)
        self.history = EventCache(T0)
        for each in self.stream.stored[len(self.stream.stored) - recent :] if recent else ():
            self.history.add(each)
        self.view = view or FakeServiceView(subject(member()))
        self.clock = Clock()
        self.past = HistoryQueries(decision_service(self.view), self.view, self.history, self.stream, self.clock)

    async def events(self, asked: str = SUBJECT, **request: Any) -> tuple[list[int], bool]:
        reply = await self.past.events(asked, EventsRequest(**request), NOW)
        return [json.loads(bytes(e))["seq"] for e in reply.events], reply.truncated

    async def moves(self, limit: int = 100) -> tuple[list[tuple[str, str, int | None]], bool]:
        reply = await self.past.history(SUBJECT, HistoryRequest(limit), NOW)
        return [(t.from_, t.to, t.held_ms) for t in reply.transitions], reply.truncated


def ago(seconds: float, seq: int, to: str = "active", **more: Any) -> bytes:
    return encoded_event(seq, T0 - round(1000 * seconds), to, subject=more.pop("subject", SUBJECT), **more)


def when(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW.wall + seconds, UTC)


HOURS = [ago(3600 * hours, 31 - hours) for hours in range(30, 0, -1)]
"""An event an hour, the newest (`seq` 30) an hour ago."""


@pytest.mark.parametrize("recent", [0, 3, 30], ids=["from the stream", "from both", "from memory"])
@pytest.mark.parametrize(
    ("asked", "expected", "truncated"),
    [
        pytest.param({}, range(30, 6, -1), False, id="a day, without `since`"),
        pytest.param({"since": when(-9e5)}, range(30, 0, -1), False, id="all there is"),
        pytest.param({"since": when(-9e5), "limit": 30}, range(30, 0, -1), False, id="exactly all there is"),
        pytest.param({"limit": 2}, [30, 29], True, id="more than the limit"),
        pytest.param({"limit": 5}, [30, 29, 28, 27, 26], True, id="a limit within the stream"),
        pytest.param({"until": when(-7200)}, range(29, 6, -1), False, id="until a moment"),
        pytest.param({"since": when(-7200), "until": when(-7200)}, [29], False, id="one moment"),
        pytest.param({"type": EventType.RECOVERY}, [], False, id="a type without events"),
        pytest.param({"since": when(-7200), "until": when(-9000)}, [], False, id="backwards"),
    ],
)
async def test_events_are_the_same_from_memory_and_from_the_stream(
    recent: int, asked: dict[str, Any], expected: Any, truncated: bool
) -> None:
    assert await Window(*HOURS, recent=recent).events(**asked) == (list(expected), truncated)


async def test_a_request_inside_the_complete_time_reads_no_stream() -> None:
    window = Window(*HOURS)
    await window.past.load_recent_events()
    assert (await window.events())[0] == list(range(30, 6, -1)) and window.stream.asked == []
    assert (await window.events(since=when(-90_001)))[0] == list(range(30, 5, -1)) and len(window.stream.asked) == 1


async def test_a_subject_known_from_its_first_event_on_is_complete() -> None:
    window = Window(*HOURS, recent=30)
    assert len((await window.events(since=when(-9e5)))[0]) == 30 and window.stream.asked == []


async def test_only_older_events_are_read_from_the_stream() -> None:
    window = Window(*HOURS, recent=3)
    await window.events(limit=10)
    (asked,) = window.stream.asked
    assert (asked.before, asked.limit, asked.since) == (28, 8, T0 - DAY)


@pytest.mark.parametrize("recent", [0, 28], ids=["of which nothing is in memory", "of which some is"])
async def test_events_of_another_replica_are_read_from_the_stream(recent: int) -> None:
    state = subject(member())
    record = replace(state.record, seq=30, since=NOW.wall - 3600, unsent=(stored_samples.event(31),))
    window = Window(*HOURS, view=FakeServiceView(replace(state, record=replace(record, seq=31))))
    early = EventCache(T0 - 9 * DAY)
    for each in window.stream.stored[:recent]:
        early.add(each)
    window.history.merge_older(early)
    assert await window.events() == (list(range(30, 6, -1)), False)
    assert [asked.before for asked in window.stream.asked] == [None]


async def test_an_event_is_returned_as_it_was_published() -> None:
    reply = await Window(HOURS[-1], recent=1).past.events(SUBJECT, EventsRequest(), NOW)
    assert reply.matched == (SUBJECT,)
    assert msgspec.json.encode(reply.events) == b"[" + HOURS[-1] + b"]"


STATUS_CHANGES = [
    ago(600, 1, "warning"),
    ago(500, 2, "active", was="warning"),
    ago(450, 3, "active", was="active", type="alert_firing"),
    ago(400, 4, "inactive", was="active"),
    ago(300, 5, "active"),
    ago(100, 6, "warning", was="active", type="recovery"),
]


@pytest.mark.parametrize("recent", [0, 2, 6], ids=["from the stream", "from both", "from memory"])
async def test_a_transition_has_the_duration_of_the_previous_status(recent: int) -> None:
    assert await Window(*STATUS_CHANGES, recent=recent).moves() == (
        [
            ("active", "warning", 200_000),
            ("inactive", "active", 100_000),
            ("active", "inactive", 100_000),
            ("warning", "active", 100_000),
            ("inactive", "warning", None),
        ],
        False,
    )


async def test_the_oldest_transition_of_a_page_has_a_duration_too() -> None:
    window = Window(*STATUS_CHANGES)
    assert await window.moves(2) == ([("active", "warning", 200_000), ("inactive", "active", 100_000)], True)
    assert await window.moves(5) == (await window.moves(100))


async def test_without_the_previous_event_the_duration_is_unknown() -> None:
    window = Window(STATUS_CHANGES[0], *STATUS_CHANGES[3:])
    assert [held for _, _, held in (await window.moves())[0]] == [200_000, 100_000, None, None]


async def test_a_clock_set_back_gives_no_negative_duration() -> None:
    window = Window(ago(100, 1), ago(200, 2, "inactive", was="active"))
    assert (await window.moves())[0][0] == ("active", "inactive", 0)


async def test_with_an_unreadable_stream_the_events_in_memory_are_returned_as_truncated() -> None:
    window = Window(*HOURS, recent=3)
    window.stream.failing = 2
    assert await window.events() == ([30, 29, 28], True)
    assert (await window.moves())[1] is True
    window = Window(*HOURS)
    window.stream.failing = 1
    with pytest.raises(RequestRefused) as refused:
        await window.events()
    assert refused.value.code == 503
    assert len((await window.events())[0]) == 24


async def test_a_literal_subject_gets_the_events_of_the_subject_that_decides() -> None:
    calm, full = subject(member(), name="orders.*.created"), subject(member("c", **OVERLOADED), name="orders.eu.*")
    stored = [ago(60, 1, subject="orders.eu.*"), ago(50, 1, subject="orders.*.created")]
    window = Window(*stored, view=FakeServiceView(calm, full))
    for name, matched in (("orders.eu.created", "orders.eu.*"), ("orders.us.created", "orders.*.created")):
        reply = await window.past.events(name, EventsRequest(), NOW)
        assert reply.matched == (matched,) and json.loads(bytes(reply.events[0]))["subject"] == matched
        assert (await window.past.history(name, HistoryRequest(), NOW)).matched == (matched,)
        assert window.past.recovery(name, NOW).matched == window.past.alerts(name, NOW).matched == (matched,)
        assert window.past.metrics(name, MetricsRequest(), NOW).matched == (matched,)


async def test_an_unwatched_subject_has_no_history() -> None:
    window = Window(*HOURS)
    for ask in (
        lambda: window.past.recovery("nobody", NOW),
        lambda: window.past.alerts("nobody", NOW),
        lambda: window.past.metrics("nobody", MetricsRequest(), NOW),
    ):
        with pytest.raises(RequestRefused, match="is not watched"):
            ask()
    with pytest.raises(RequestRefused, match="is not watched"):
        await window.events("nobody")


async def test_before_the_first_readings_there_is_no_history() -> None:
    window = Window()
    window.view.newest_read_at = None
    with pytest.raises(RequestRefused) as refused:
        window.past.alerts_list(NOW)
    assert refused.value.code == 503


def test_a_recovery_is_the_last_incident() -> None:
    state = subject(member())
    ended = Recoveries("k3f9-1", NOW.wall - 90, NOW.wall - 30, 3, 120.0)
    view = FakeServiceView(replace(state, record=replace(state.record, recoveries=ended)))
    assert msgspec.to_builtins(Window(view=view).past.recovery(SUBJECT, NOW)) == {
        "recovered": True,
        "recovery_time": "2025-12-31T23:59:30.000Z",
        "incident": "k3f9-1",
        "duration_ms": 60_000,
        "recoveries_total": 3,
        "mean_time_to_recover_ms": 40_000,
        "matched": (SUBJECT,),
    }


def alerting(name: str, *alerts: SubjectAlert) -> Any:
    state = subject(member(), name=name)
    return replace(state, record=replace(state.record, alerts=alerts))


def test_alerts_are_listed_the_most_urgent_first() -> None:
    def alert(name: str, state: Any) -> SubjectAlert:
        return SubjectAlert(name, "critical", "pending_above: 5000", state, NOW.wall - 1, 6000)

    view = FakeServiceView(
        alerting("a", alert("x", "resolved"), alert("y", "pending")),
        alerting("b", alert("z", "firing")),
        subject(member(), name="c"),
        replace(subject(member(), name="d"), record=None),
    )
    past = Window(view=view).past
    reply = past.alerts_list(NOW)
    assert [(a.subject, a.name, a.state) for a in reply.alerts] == [
        ("b", "z", "firing"),
        ("a", "y", "pending"),
        ("a", "x", "resolved"),
    ]
    assert msgspec.to_builtins(reply.alerts[0]) == {
        "subject": "b", "name": "z", "severity": "critical", "state": "firing", "when": "pending_above: 5000",
        "value": 6000, "since": "2025-12-31T23:59:59.000Z",
    }  # fmt: skip
    assert [a.name for a in past.alerts("a", NOW).alerts] == ["y", "x"]
    assert past.alerts("c", NOW).alerts == past.alerts("d", NOW).alerts == ()


class Watched(FakeServiceView):
    """A view of a service that existed for half of each window."""

    def window(self, subject: str, now: Now, seconds: float) -> WindowSummary | None:
        spent = {Status.ACTIVE: 10.0, Status.INACTIVE: seconds / 2 - 10.0}
        return WindowSummary(0.5, spent, {"pending": Measure(4, 10.0, 1.0, 4.0), "p95": Measure()})


def test_windows_have_event_counts_and_measured_ranges() -> None:
    state = subject(member())
    assert state.record is not None
    events = replace(state.record, totals=Totals(2, 1, 2, NOW.wall - 100))
    window = Window(*STATUS_CHANGES, recent=6, view=Watched(replace(state, record=events)))
    reply = msgspec.to_builtins(window.past.metrics(SUBJECT, MetricsRequest(("2m", "1h")), NOW))
    totals = [reply[f"{kind}_events"] for kind in ("total", "active", "warning", "recovery")]
    assert totals == [5, 2, 1, 2] and reply["last_event_time"] == "2025-12-31T23:58:20.000Z"
    assert reply["windows"]["2m"]["events"] == {"backpressure_active": 0, "backpressure_warning": 0, "recovery": 1}
    assert reply["windows"]["1h"]["events"] == {"backpressure_active": 2, "backpressure_warning": 1, "recovery": 2}
    two = reply["windows"]["2m"]
    assert two["time_in"] == {"active_ms": 10_000, "warning_ms": 0, "inactive_ms": 50_000, "unknown_ms": 0}
    assert (two["coverage"], two["pending"]) == (0.5, {"min": 1.0, "mean": 2.5, "max": 4.0})
    assert two["latency_p95_ms"] == two["inflight"] == {"min": None, "mean": None, "max": None}


def test_a_window_without_readings_has_coverage_zero() -> None:
    reply = Window().past.metrics(SUBJECT, MetricsRequest(("1m",)), NOW)
    assert (reply.windows["1m"].coverage, reply.last_event_time) == (0.0, None)
    with pytest.raises(BadRequest):
        Window().past.metrics("nobody", MetricsRequest(("1s",)), NOW)


async def test_the_windows_count_what_any_replica_publishes() -> None:
    window = Window(*HOURS[:-1], ago(30, 30, "warning"))
    async with meanwhile(window.past.follow_events()):
        await settled()
        window.stream.publish(ago(20, 31, "inactive", was="warning"))
        counts = window.past.metrics(SUBJECT, MetricsRequest(("1m",)), NOW).windows["1m"].events
        assert (counts.backpressure_warning, counts.recovery) == (1, 1)
    assert len(window.stream.asked) == 0


async def test_before_the_events_are_loaded_the_stream_is_asked() -> None:
    window = Window(*HOURS)
    window.past = HistoryQueries(decision_service(window.view), window.view, EventCache(), window.stream, window.clock)
    assert (await window.events(limit=2))[0] == [30, 29]
    assert len(window.stream.asked) == 1


async def test_loading_is_tried_until_it_succeeds() -> None:
    window = Window(*HOURS)
    window.stream.failing = 12
    await window.past.load_recent_events()
    assert window.clock.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 10, 10])
    assert [e.seq for e in window.history.events_of(SUBJECT)] == list(range(7, 31))
    assert window.history.complete_since(SUBJECT) == T0 - DAY


async def test_after_a_partial_load_fewer_events_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "FEWEST_LOADED", 2)
    monkeypatch.setattr(rooms, "EVENTS", 40)
    window = Window(*HOURS)
    window.stream.longest, window.stream.failing = 6, 1
    await window.past.load_recent_events()
    assert [e.seq for e in window.history.events_of(SUBJECT)] == [26, 27, 28, 29, 30]
    assert (await window.events())[0] == list(range(30, 6, -1)) and len(window.stream.asked) == 1


async def test_the_history_is_the_same_after_a_restart(nc: Client) -> None:
    async with stored_samples.real(nc) as (requests, _, _):
        view = FakeServiceView(subject(member(), name=stored_samples.SUBJECT))

        def rendered(concluded: SubjectEvent) -> messages.Event:
            seq = concluded.seq
            return event(seq, T0 - 5000 + seq, subject=stored_samples.SUBJECT).event()

        def process() -> tuple[HistoryQueries, EventCache]:
            stream = JetStreamEventReader(
                JetStreamApi(requests), lambda: nc, stored_samples.NAMES, parse_event, lambda what: None, SystemClock()
            )
            cache = EventCache()
            return HistoryQueries(decision_service(view), view, cache, stream, Clock()), cache

        first, cache = process()
        publisher = JetStreamEventPublisher(JetStreamApi(requests), stored_samples.NAMES, rendered)
        async with meanwhile(first.follow_events()):
            for seq in range(1, 41):
                await publisher.publish(replace(stored_samples.event(seq), at=(T0 - 5000 + seq) / 1000))

            async def all_cached() -> bool:
                return len(cache) == 40

            await eventually(all_cached, "all events to be cached")
        second, _ = process()
        await second.load_recent_events()
        for ask in (
            lambda past: past.events(stored_samples.SUBJECT, EventsRequest(), NOW),
            lambda past: past.events(stored_samples.SUBJECT, EventsRequest(limit=7), NOW),
            lambda past: past.history(stored_samples.SUBJECT, HistoryRequest(), NOW),
        ):
            before, again = await ask(first), await ask(second)
            assert msgspec.json.encode(before) == msgspec.json.encode(again)
        assert len(again.transitions) == 40
        await nc.jetstream().purge_stream(stored_samples.NAMES.events_stream)
        assert len((await second.events(stored_samples.SUBJECT, EventsRequest(), NOW)).events) == 40
        third, _ = process()
        await third.load_recent_events()
        assert (await third.events(stored_samples.SUBJECT, EventsRequest(), NOW)).events == ()
