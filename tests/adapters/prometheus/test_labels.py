"""Labels are bounded, given back when a subject goes, and `_other` is a name that nothing else has."""

from __future__ import annotations

from msgspec.structs import replace

from nats_backpressure.adapters.prometheus.definitions import NAMED_OTHER
from nats_backpressure.adapters.prometheus.shared_time import SharedTime
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.values import ConsumerKey
from tests.simulations.metrics_page import P, World, everything, member, state


def test_a_subject_that_goes_leaves_no_series_and_makes_room_for_another() -> None:
    world = World(max_subjects=1)
    everything(world)
    world.watch(state("a.b", replace(member(), policy=Policy(mode="observe"))), state("late", member()))
    world.metrics.event("late", "recovery")
    assert set(world.values(P + "status")) == {("a.b",), ("_other",)}
    del world.view.states["a.b"]
    world.metrics.event("late", "recovery")
    assert set(world.values(P + "status")) == {("late",)}
    assert "a.b" not in world.text(), "every series of it is gone"
    world.metrics.event("late", "recovery")
    assert world.values(P + "recovery_total") == {("_other",): 2, ("late",): 1}, "what was counted under it stays"


def test_what_is_counted_of_all_others_never_falls() -> None:
    world, page = World(max_subjects=1), P + "time_in_status_seconds_total"
    world.watch(state("a", member()), state("b", member()), state("c", member()))
    assert world.values(page)["active", "_other"] == 3
    world.metrics.event("b", "recovery")
    del world.view.states["b"]
    assert world.values(page)["active", "_other"] == 3
    del world.view.states["a"]
    assert world.values(page)["active", "_other"] == 3, "c has a series of its own now"
    assert world.values(page)["active", "c"] == 1.5
    assert world.values(P + "recovery_total")["_other",] == 1


def test_shared_time_counts_on_whoever_comes_and_goes() -> None:
    time = SharedTime()
    assert time.total({"a": {"active": 5.0}, "b": {"active": 1.0, "inactive": 2.0}}) == {"active": 6, "inactive": 2}
    assert time.total({"b": {"active": 1.0, "inactive": 4.0}}) == {"active": 6, "inactive": 4}
    assert time.total({"a": {"active": 1.0}, "b": {"active": 1.0, "inactive": 4.0}}) == {"active": 7, "inactive": 4}
    assert time.total({"b": {"active": 0.5}}) == {"active": 7.5, "inactive": 4}, "it was dropped, and is watched again"


def test_a_subject_of_that_name_has_a_label_of_its_own() -> None:
    world = World(max_subjects=1)
    odd = member("_other", pending=1)
    odd = replace(odd, key=ConsumerKey("_other", "_other"))
    world.watch(state("_other", odd), state("second", member(pending=10)))
    world.metrics.event("_other", "recovery")
    assert world.values(P + "recovery_total") == {(NAMED_OTHER,): 1, ("_other",): 0}
    assert world.values(P + "pending_messages") == {
        (NAMED_OTHER, NAMED_OTHER, NAMED_OTHER): 1,
        ("_other", "_other", "_other"): 10,
    }


def test_streams_that_go_make_room_for_others_too() -> None:
    world = World(max_subjects=2)
    for stream in ("=streams", "S", "_other"):
        world.metrics.received(stream)
        world.view.looks = {**world.view.looks, stream: StreamLook(stream, "c", 1, 9, 9)}
    assert world.values(P + "readings_heard_total") == {("=streams",): 1, ("S",): 1, ("_other",): 1}
    world.view.looks = {"_other": StreamLook("_other", "c", 1, 9, 9)}
    world.text()
    world.metrics.received("_other")
    assert world.values(P + "readings_heard_total") == {("=streams",): 1, (NAMED_OTHER,): 1, ("_other",): 1}
