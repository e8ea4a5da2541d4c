"""The metrics page as Prometheus reads it: names, values, bounds, and unknown values left out."""

from __future__ import annotations

from itertools import permutations, product

from msgspec.structs import replace

from nats_backpressure.adapters.prometheus.counters import Counters
from nats_backpressure.adapters.prometheus.definitions import COUNTERS
from nats_backpressure.adapters.prometheus.dropped import DROPPED
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import Action, EventType
from tests.simulations.metrics_page import P, World, everything, member, state


def test_what_the_service_reports_is_counted(world: World) -> None:
    everything(world)
    assert world.counted(P + "events_total") == {("backpressure_active", "a.b"): 1, ("recovery", "a.b"): 1}
    assert world.counted(P + "recovery_total") == {("a.b",): 1}
    assert world.counted(P + "transitions_total") == {("inactive", "a.b", "active"): 1}
    assert world.values(P + "decisions_total")[("reject", "gateway", "a.b")] == 1
    assert world.counted(P + "decision_duration_seconds_count") == {(): 2}
    assert world.counted(P + "dropped_total") == {("reply_subject",): 3}
    assert world.counted(P + "api_requests_total") == {("consumer_list", "ok"): 1}
    assert world.counted(P + "connection_rebuilds_total") == {("answer",): 1}
    assert world.counted(P + "observe_duration_seconds_sum") == {(): 0.01}


def test_decisions_counted_elsewhere_are_on_the_page() -> None:
    metrics = Counters(10)

    def pass_on() -> None:
        metrics.decisions("a.b", "gateway", "reject", "throttle", 3)
        metrics.durations(3, 0.0006)
        metrics.durations(1, 7.0)

    metrics.expose(lambda pause: iter(()), pass_on)
    text = b"".join(metrics.page()).decode()
    name = P + "decision_duration_seconds"
    for line in (
        P + 'decisions_total{action="reject",role="gateway",subject="a.b"} 3.0',
        P + 'would_total{action="throttle",role="gateway",subject="a.b"} 3.0',
        name + '_bucket{le="0.0001"} 0.0',
        name + '_bucket{le="0.00025"} 3.0',
        name + '_bucket{le="+Inf"} 4.0',
        name + "_sum 7.0006",
    ):
        assert line in text.splitlines()


def test_beyond_the_bound_the_rest_is_one(world: World) -> None:
    world = World(max_subjects=2)
    world.watch(*(state(f"s{n}", member(f"c{n}", age=float(n), pending=n)) for n in range(5)))
    assert world.values(P + "pending_messages") == {
        ("c0", "S", "s0"): 0, ("c1", "S", "s1"): 1, ("_other", "_other", "_other"): 2 + 3 + 4,
    }  # fmt: skip
    assert world.values(P + "sample_age_seconds") == {("s0",): 0, ("s1",): 1, ("_other",): 4}
    assert world.values(P + "time_in_status_seconds_total")["active", "_other"] == 4.5
    assert world.values("router_jetstream_pending_messages")["_other", "_other"] == 9
    for n in range(5):
        world.metrics.event(f"s{n}", "recovery")
        world.metrics.transition(f"s{n}", "active", "inactive")
        world.decision(f"s{n}", "gateway", "continue", 0.001)
    assert world.counted(P + "recovery_total") == {("s0",): 1, ("s1",): 1, ("_other",): 3}
    assert world.counted(P + "events_total") == {
        ("recovery", "s0"): 1,
        ("recovery", "s1"): 1,
        ("recovery", "_other"): 3,
    }
    assert world.values(P + "decisions_total")["continue", "gateway", "_other"] == 3
    assert world.values(P + "transitions_total")["active", "_other", "inactive"] == 3


def test_readings_of_others_are_counted_by_stream_and_beyond_the_limit_together(world: World) -> None:
    world = World(2)
    world.view.looks = {name: StreamLook(name, "c", 1, 9, 9) for name in ("S", 'T"', "U", "V")}
    for stream in ("S", "S", 'T"', "U", "V", "S"):
        world.metrics.received(stream)
    assert world.values(P + "readings_heard_total") == {("S",): 3, ('T"',): 1, ("_other",): 2}


def test_any_subject_is_a_label(world: World) -> None:
    for subject in ('quote"d', "back\\slash", "größe.→", "orders.*.>", "a b"):
        world.watch(state(subject, member()))
        assert world.values(P + "status")[subject,] == 2


def test_actions_of_a_dry_run_are_counted_apart(world: World) -> None:
    everything(world)
    assert world.counted(P + "would_total") == {("reject", "gateway", "a.b"): 1.0}
    assert world.values(P + "decisions_total")[("continue", "gateway", "a.b")] == 1.0


def test_the_first_step_of_every_counter_is_seen(world: World) -> None:
    """What is known of the labels is there with 0 before anything was counted."""
    world.watch(state("a.b", member()), state("c.d", replace(member("d"), policy=Policy(mode="observe"))))
    for subject in ("a.b", "c.d"):
        assert {key[0] for key in world.values(P + "events_total") if key[1] == subject} == set(EventType)
        assert world.values(P + "recovery_total")[subject,] == 0
        made = {key[:2] for key in world.values(P + "decisions_total") if key[2] == subject}
        assert made == set(product(Action, ("gateway", "consumer")))
        moves = {key[::2] for key in world.values(P + "transitions_total") if key[1] == subject}
        assert moves == set(permutations(("inactive", "warning", "active"), 2))
    would = {key[2] for key in world.values(P + "would_total")}
    assert would == {"c.d"}, "of an enforced policy it says nothing"
    requests = product(("STREAM.LIST", "STREAM.INFO", "CONSUMER.LIST", "CONSUMER.INFO"), ("ok", "error", "unavailable"))
    assert set(world.values(P + "api_requests_total")) == set(requests)
    assert set(world.values(P + "connection_rebuilds_total")) == {("observe",), ("answer",)}
    assert {name for (name,) in world.values(P + "dropped_total")} == set(DROPPED)
    assert set(world.values(P + "reloads_total")) == {("ok",), ("rejected",)}
    for name in COUNTERS:
        assert not world.counted(P + name + "_total")


def test_those_beyond_the_bound_begin_at_0_too() -> None:
    world = World(max_subjects=1)
    world.watch(state("a", member()), state("b", member()))
    assert set(world.values(P + "recovery_total")) == {("a",), ("_other",)}
