"""What the page shows of freshness and of the process: each value has a series, and each reason its own."""

from __future__ import annotations

import gc
import os
import resource
import time

import pytest
from msgspec.structs import replace

from nats_backpressure.adapters.prometheus import process
from nats_backpressure.adapters.prometheus.definitions import FRESHNESS, LEFT_OUT
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.subject.record import Writing
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.watch_filter import WatchEntry, why_left_out
from nats_backpressure.protocol.values import ConsumerKey, Status
from tests.simulations.metrics_page import NOW, P, World, everything, member, state
from tests.simulations.stored_samples import event

STALE = state("s", member(age=15.0))
FAILING = state("s", member())
assert FAILING.record is not None
FAILING = replace(FAILING, writing=Writing(FAILING.record, 1, "n", failing=True, started_at=NOW.mono - 1))
UNREAD = state("s", replace(member(), proof=None, reading=None, status=Status.UNKNOWN))


@pytest.mark.parametrize(
    ("given", "freshness"),
    [
        pytest.param(state("s", member()), ("known", "none"), id="read a moment ago"),
        pytest.param(STALE, ("stale", "age"), id="read 15 s ago"),
        pytest.param(FAILING, ("stale", "no_quorum"), id="a write fails"),
        pytest.param(state("s", member(age=60.0)), ("unknown", "age"), id="read a minute ago"),
        pytest.param(UNREAD, ("unknown", "unread"), id="never read"),
        pytest.param(replace(UNREAD, record=None), ("unknown", "unstored"), id="never stored"),
        pytest.param(replace(state("s", member()), unstored=True), ("unknown", "unstored"), id="not stored yet"),
        pytest.param(state("s", unknown=True), ("unknown", "gone"), id="without consumers"),
    ],
)
def test_each_subject_has_its_freshness_with_the_reason(
    world: World, given: SubjectState, freshness: tuple[str, str]
) -> None:
    world.view.gone = {"s"} if freshness[1] == "gone" else set()
    world.watch(given)
    assert world.values(P + "freshness") == {(*freshness, "s"): 1}
    assert world.counted(P + "subjects") == {freshness: 1}
    assert set(world.values(P + "subjects")) == set(FRESHNESS), "all others are 0"


def test_a_subject_without_consumers_is_gone_and_not_unknown(world: World) -> None:
    """An alert on `status == -1` must not page for who was deleted on purpose."""
    world.view.gone = {"gone"}
    world.watch(state("gone", unknown=True), state("blind", member(age=60.0)))
    assert world.values(P + "status") == {("blind",): -1}
    assert world.values("router_intake_backpressure_active") == {("blind",): 0}


def test_what_is_gone_for_others_and_known_here_has_a_status(world: World) -> None:
    world.view.gone = {"s"}
    world.watch(state("s", member()))
    assert world.values(P + "status") == {("s",): 2}


def test_rates_and_marks_of_the_worst_consumer_are_shown(world: World) -> None:
    everything(world)
    assert world.values(P + "arrival_rate") == {("a.b",): 7} and world.values(P + "ack_rate") == {("a.b",): 5}
    assert world.values(P + "overload_mark") == {
        ("pending", "a.b"): 1000, ("inflight", "a.b"): 500, ("latency_p95", "a.b"): 5000, ("drain", "a.b"): 5,
    }  # fmt: skip


def test_events_that_wait_are_counted(world: World) -> None:
    events: tuple[SubjectEvent, ...] = tuple(event(n) for n in (1, 2, 3))
    world.watch(replace(state("s", member(), unsent=events), published=frozenset({events[0].id})), state("t", member()))
    assert world.values(P + "unsent_events") == {(): 2}


def test_the_process_as_a_whole(world: World) -> None:
    assert world.values(P + "connected") == {("observe",): 1, ("answer",): 1}
    expected = {
        "observing": 1, "reading_age_seconds": 0.05, "reading_interval_seconds": 0.1, "heartbeat_age_seconds": 1.5,
        "write_delay_seconds": 0, "streams": 2, "consumers": 3, "policies_refused": 0, "reload_successful": 1,
        "reload_timestamp_seconds": NOW.wall, "unsent_events": 0,
    }  # fmt: skip
    assert {name: world.values(P + name)[()] for name in expected} == expected
    assert world.values(P + "consumers_left_out") == {
        (reason,): 4 if reason == "ephemeral" else 0 for reason in LEFT_OUT
    }
    world.health = replace(world.health, connected={"observe": False, "answer": True}, reading_age=None)
    assert world.values(P + "connected") == {("observe",): 0, ("answer",): 1}
    assert world.values(P + "reading_age_seconds") == {}, "nothing was read yet"


def test_every_reason_to_leave_a_consumer_out_has_a_series() -> None:
    key, watch = ConsumerKey("S", "c"), [WatchEntry("S")]
    given = [
        why_left_out(key, ConsumerConfig(), [WatchEntry("T")], ()),
        why_left_out(key, ConsumerConfig(durable=False), watch, ()),
        why_left_out(key, ConsumerConfig(ack_policy="none"), watch, ()),
        why_left_out(key, ConsumerConfig(), watch, ()),
    ]
    assert given == list(LEFT_OUT)


def test_reloads_and_loop_lag_are_counted_from_0(world: World) -> None:
    assert world.values(P + "reloads_total") == {("ok",): 0, ("rejected",): 0}
    world.metrics.reloaded("rejected")
    world.metrics.lagged(0.3)
    assert world.values(P + "reloads_total") == {("ok",): 0, ("rejected",): 1}
    assert world.values(P + "loop_lag_seconds_sum") == {(): 0.3}
    assert world.values(P + "loop_lag_seconds_bucket")["0.25",] == 0
    assert world.values(P + "loop_lag_seconds_bucket")["0.5",] == 1


def test_the_process_is_shown_under_the_names_that_every_exporter_uses(world: World) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    assert world.values("process_cpu_seconds_total")[()] == pytest.approx(used.ru_utime + used.ru_stime, abs=1)
    assert world.values("process_resident_memory_bytes")[()] <= 1024 * used.ru_maxrss * 1.01
    assert time.time() - 86_400 < world.values("process_start_time_seconds")[()] <= time.time() + 1
    assert 3 <= world.values("process_open_fds")[()] <= world.values("process_max_fds")[()]
    assert world.values("process_virtual_memory_bytes")[()] > os.sysconf("SC_PAGE_SIZE")
    before = world.values("python_gc_collections_total")["2",]
    gc.collect()
    assert world.values("python_gc_collections_total")["2",] >= before + 1


def test_where_the_system_shows_nothing_python_still_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PROC", process.PROC / "nothing")
    assert "process_cpu_seconds_total" not in world.text()
    assert world.values("python_gc_collections_total")
