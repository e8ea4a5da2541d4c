"""The client's copy of the states: no gap and no wrong clock makes an old calm state look fresh."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.adapters.nats.fact_reader import TRIAL, TRIAL_PAYLOAD
from nats_backpressure.client.cached_admission import CachedAdmission
from nats_backpressure.client.state_mirror import MAX_INSTANCES, VANISHED_SECONDS, StateMirror
from nats_backpressure.protocol.subjects import HEARTBEAT, encode
from tests.simulations.state_bucket import SUBJECT, active, state

STAMP = 1_800_000_000.0
"""The server's time, far from ours."""


class Mirror:
    """A state mirror and its clock."""

    def __init__(self, *subjects: str, **options: Any) -> None:
        self.states, self.now = StateMirror(**options), 1000.0
        self.states.filter.add(subjects or (">",))
        self._sampled = 0

    def put(self, *states: dict[str, Any], age: float = 0.0) -> str | None:
        problem = None
        for value in states:
            data, key = msgspec.json.encode(value), encode(value["subject"])
            problem = self.states.put(key, data, self.now - age, STAMP + self.now - age)
        return problem

    def heartbeat(self, age: float = 0.0, lag: float = 0.0, **fields: Any) -> str | None:
        value = msgspec.json.encode({"sampled_at": rfc3339(STAMP + self.now - age - lag), "instance": "i", **fields})
        return self.states.put(HEARTBEAT, value, self.now - age, STAMP + self.now - age)

    def ratio(self, subject: str = SUBJECT) -> float:
        cached = CachedAdmission(subject)
        self.states.refresh(cached, self.now)
        return cached.decision.ratio

    def decision(self, subject: str = SUBJECT) -> tuple[str, str]:
        cached = CachedAdmission(subject)
        self.states.refresh(cached, self.now)
        return cached.decision.action, cached.decision.freshness


def rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat()


@pytest.fixture
def mirror() -> Mirror:
    return Mirror()


def test_a_state_is_known_while_heartbeats_come_and_ages_without(mirror: Mirror) -> None:
    mirror.put(active())
    ages = []
    for step in range(12):
        if step < 5:
            mirror.heartbeat()
        ages.append(mirror.decision()[1])
        mirror.now += 8
    assert ages[:6] == ["known"] * 6
    assert ages[6:8] == ["stale"] * 2 and set(ages[8:]) == {"unknown"}


def test_a_heartbeat_whose_sampled_at_does_not_move_proves_nothing(mirror: Mirror) -> None:
    mirror.put(active())
    mirror.heartbeat(sampled_at="2026-01-01T00:00:00.000Z")
    for _ in range(4):
        mirror.now += 8
        mirror.heartbeat(sampled_at="2026-01-01T00:00:00.000Z")
    assert mirror.decision() == ("continue", "unknown")


def test_two_instances_whose_sampled_at_does_not_move_prove_nothing(mirror: Mirror) -> None:
    mirror.put(active())
    for step in range(8):
        mirror.heartbeat(instance=f"i{step % 2}", sampled_at=f"2026-01-01T00:00:0{step % 2}.000Z")
        mirror.now += 5
    assert mirror.decision() == ("continue", "unknown")


def test_a_heartbeat_that_has_sampled_nothing_proves_nothing(mirror: Mirror) -> None:
    mirror.put(active())
    mirror.now += 31
    mirror.heartbeat(sampled_at=None)
    assert mirror.decision()[1] == "unknown"


def test_a_clock_that_is_hours_off_costs_one_heartbeat_at_most(mirror: Mirror) -> None:
    mirror.put(state(), age=7200)
    mirror.heartbeat(lag=3600)
    assert mirror.decision()[1] == "unknown"
    mirror.now += 2
    mirror.heartbeat(lag=3600)
    assert mirror.decision()[1] == "known"
    mirror.heartbeat(lag=-3600)
    assert mirror.decision()[1] == "known"


def test_a_late_start_after_the_sidecar_died_does_not_take_an_old_calm_for_fresh(mirror: Mirror) -> None:
    mirror.states.begin_snapshot()
    mirror.put(state(on_unknown="reject"), age=5000)
    mirror.heartbeat(age=3600)
    mirror.states.end_snapshot(mirror.now)
    assert mirror.decision() == ("reject", "unknown")


def test_a_heartbeat_of_a_snapshot_proves_nothing_before_the_last_state_is_in(mirror: Mirror) -> None:
    mirror.put(state())
    mirror.now += 20
    mirror.states.begin_snapshot()
    mirror.heartbeat()
    assert mirror.decision() == ("continue", "stale")
    mirror.put(active())
    mirror.states.end_snapshot(mirror.now)
    assert mirror.decision() == ("reject", "known")


def test_a_state_that_vanished_stays_and_ages_despite_heartbeats(mirror: Mirror) -> None:
    mirror.put(active())
    mirror.heartbeat()
    mirror.now += 5
    mirror.states.begin_snapshot()
    mirror.heartbeat()
    mirror.states.end_snapshot(mirror.now)
    assert mirror.decision() == ("reject", "known")
    mirror.now += 6
    mirror.heartbeat()
    assert mirror.decision() == ("throttle", "stale")
    mirror.now += 60
    mirror.heartbeat()
    assert mirror.decision() == ("continue", "unknown")
    mirror.put(state())
    assert mirror.decision() == ("continue", "known")


def test_a_state_that_vanished_long_ago_is_removed(mirror: Mirror) -> None:
    """Without another snapshot: there may be none for days."""
    mirror.put(active(), active("calls"))
    mirror.states.begin_snapshot()
    mirror.put(active("calls"))
    mirror.states.end_snapshot(mirror.now)
    mirror.now += VANISHED_SECONDS
    mirror.states.remove_vanished(mirror.now)
    assert set(mirror.states.states) == {SUBJECT, "calls"}
    mirror.states.remove_vanished(mirror.now + 1)
    assert set(mirror.states.states) == {"calls"}


def test_a_state_that_vanished_and_was_written_again_is_not_removed(mirror: Mirror) -> None:
    mirror.put(active())
    mirror.states.begin_snapshot()
    mirror.states.end_snapshot(mirror.now)
    mirror.put(active())
    mirror.states.remove_vanished(mirror.now + 2 * VANISHED_SECONDS)
    assert set(mirror.states.states) == {SUBJECT}


def test_a_state_that_was_deleted_is_gone_at_once(mirror: Mirror) -> None:
    mirror.put(active(), active("orders.*"))
    mirror.states.delete(SUBJECT)
    mirror.states.delete("orders.=2A")
    mirror.states.delete("not.=canonical")
    assert mirror.decision() == ("continue", "unknown") and not mirror.states.states


def test_a_state_that_is_not_known_ages_despite_heartbeats_and_writes(mirror: Mirror) -> None:
    """One stream cannot be read: the others' heartbeats prove nothing about its subject."""
    mirror.put(active("another"), active())
    lost = active(freshness="stale", proof_age_ms=10_000)
    decisions = []
    for n in range(8):
        mirror.heartbeat()
        mirror.put(lost | {"proof_age_ms": 10_000 + 1000 * n})  # written again, for example for an alert
        decisions.append(mirror.decision())
        mirror.now += 1
    assert decisions == [("reject", "stale")] + [("throttle", "stale")] * 3 + [("continue", "stale")] * 4
    assert mirror.decision("another") == ("reject", "known")
    mirror.put(active())
    assert mirror.decision() == ("reject", "known")


@pytest.mark.parametrize("age", [{}, {"proof_age_ms": None}, {"proof_age_ms": 0}], ids=str)
def test_a_subject_the_sidecar_lost_holds_from_its_last_proof(mirror: Mirror, age: dict[str, Any]) -> None:
    lost = active(status="unknown", freshness="unknown", **age)
    mirror.put(active())
    mirror.put(lost)
    decisions = []
    for _ in range(4):
        mirror.now += 4
        mirror.heartbeat()
        if not age.get("proof_age_ms", 1):
            mirror.put(lost | {"proof_age_ms": round(1000 * (mirror.now - 1000))})
        else:
            mirror.put(lost)  # written again by a sidecar that does not say how old it is: the hold goes on
        decisions.append(mirror.decision())
    assert decisions == [("reject", "unknown")] * 2 + [("throttle", "unknown"), ("continue", "unknown")]
    mirror.put(active())
    assert mirror.decision() == ("reject", "known")


@pytest.mark.parametrize("on_unknown", ["hold", "reject"])
def test_a_state_lost_before_the_watch_is_as_old_as_its_proof_age(mirror: Mirror, on_unknown: str) -> None:
    lost = active(status="unknown", freshness="unknown", on_unknown=on_unknown)
    open_ = ("continue" if on_unknown == "hold" else "reject", "unknown")
    mirror.put(lost)
    assert mirror.decision() == open_, "without a proof age it is old"
    mirror.put(lost | {"proof_age_ms": 5000})
    assert mirror.decision() == ("reject", "unknown")
    mirror.now += 9
    assert mirror.decision() == open_


@pytest.mark.parametrize("override", ["reject", "open"])
def test_an_override_holds_while_a_sidecar_is_there_to_end_it(mirror: Mirror, override: str) -> None:
    value = active if override == "reject" else state
    action = "reject" if override == "reject" else "continue"
    mirror.put(value(status="unknown", freshness="unknown", proof_age_ms=0, on_unknown="reject",
                  override={"action": override, "until": "2027-01-01T00:00:00.000Z"}))  # fmt: skip
    for _ in range(10):
        mirror.now += 5
        mirror.heartbeat()
        assert mirror.decision() == (action, "unknown")


def test_an_override_does_not_outlive_the_sidecar_that_would_end_it(mirror: Mirror) -> None:
    mirror.put(active(override={"action": "reject", "until": "2027-01-01T00:00:00.000Z"}))
    mirror.now += 14
    assert mirror.decision() == ("continue", "stale")


def test_a_replica_that_leaves_as_the_last_opens_at_once_a_quarter_a_second(mirror: Mirror) -> None:
    mirror.put(active(), active("strict", on_unknown="reject"), active("quick", on_unknown="continue"))
    mirror.heartbeat()
    mirror.now += 2
    mirror.heartbeat(leaving=True)
    decisions = []
    for _ in range(5):
        decisions.append((*mirror.decision(), mirror.ratio()))
        mirror.now += 1
    assert decisions == [
        ("reject", "stale", 0.0),
        *(("throttle", "stale", n / 4) for n in (1, 2, 3)),
        ("continue", "stale", 1),
    ]
    assert mirror.decision("strict")[0] == "reject" and mirror.decision("quick")[0] == "continue"


def test_a_gateway_that_starts_after_the_last_replica_left_is_open(mirror: Mirror) -> None:
    mirror.states.begin_snapshot()
    mirror.put(active(), age=6)
    mirror.heartbeat(age=5, leaving=True)
    mirror.states.end_snapshot(mirror.now)
    assert mirror.decision() == ("continue", "stale")


@pytest.mark.parametrize(
    "how", ["a heartbeat of another replica", "a heartbeat of the one that left", "a replica writes the state"]
)
def test_leaving_counts_until_a_replica_is_there(mirror: Mirror, how: str) -> None:
    mirror.put(active())
    mirror.heartbeat()
    mirror.heartbeat(instance="other")
    mirror.now += 1
    mirror.heartbeat(leaving=True)
    mirror.now += 2
    assert mirror.decision() == ("throttle", "stale")
    match how:
        case "a heartbeat of another replica":
            mirror.heartbeat(instance="other")
        case "a heartbeat of the one that left":
            mirror.heartbeat()
        case _:
            mirror.put(active())
    assert mirror.decision() == ("reject", "known")


def test_a_heartbeat_that_proves_nothing_does_not_end_leaving(mirror: Mirror) -> None:
    mirror.put(active())
    mirror.heartbeat(instance="stuck", sampled_at="2027-01-15T08:00:00.000Z")
    mirror.heartbeat()
    mirror.heartbeat(leaving=True)
    mirror.now += 4
    mirror.heartbeat(instance="stuck", sampled_at="2027-01-15T08:00:00.000Z")
    assert mirror.decision() == ("continue", "stale")


def test_slow_heartbeats_make_nothing_stale(mirror: Mirror) -> None:
    """`stale_after_seconds: 2` beside a heartbeat every 5 s: a state must not be stale between two of them."""
    mirror.put(active())
    for _ in range(5):
        mirror.heartbeat(stale_after_ms=2000, unknown_after_ms=4000, heartbeat_ms=5000)
        mirror.now += 5
        assert mirror.decision() == ("reject", "known")
    mirror.now += 9.9
    assert mirror.decision() == ("reject", "known")
    mirror.now += 4.1
    assert mirror.decision() == ("continue", "stale")
    mirror.now += 12
    assert mirror.decision() == ("continue", "unknown")


def test_heartbeats_are_missing_only_once_no_instance_sends_any(mirror: Mirror) -> None:
    assert not mirror.states.heartbeats_missing(mirror.now), "nothing was promised yet"
    mirror.heartbeat(instance="one")
    mirror.now += 9
    mirror.heartbeat(instance="two")
    mirror.now += 9
    assert not mirror.states.heartbeats_missing(mirror.now)
    mirror.now += 1
    assert mirror.states.heartbeats_missing(mirror.now)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=300))
def test_the_newest_instance_is_never_refused_however_many_there_were(instances: list[int]) -> None:
    """A gateway outlives many rollouts, and each brings instances with new names."""
    mirror = Mirror()
    mirror.put(active())
    for n in instances:
        mirror.now += 40
        mirror.heartbeat(instance=f"pod-{n}")
        assert mirror.decision() == ("reject", "known")
        assert len(mirror.states._heartbeats.sampled) <= MAX_INSTANCES  # type: ignore[union-attr]


def test_a_literal_is_governed_by_every_state_that_covers_it_and_the_worst_decides(mirror: Mirror) -> None:
    mirror.put(state(SUBJECT), active("orders.*"), state("orders.>", action="throttle", admit_ratio=0.5))
    assert mirror.decision()[0] == "reject"
    assert mirror.decision("orders.eu.created")[0] == "throttle"
    assert mirror.decision("orders.>")[0] == "throttle"
    assert mirror.decision("orders.*.created")[0] == "continue", "a pattern is about itself alone"
    mirror.states.delete("orders.=2A")
    assert mirror.decision()[0] == "throttle"


def test_what_doctor_tries_to_write_is_passed_over(mirror: Mirror) -> None:
    assert mirror.states.put(TRIAL, TRIAL_PAYLOAD, mirror.now, STAMP) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"admit_ratio": -0.1},
        {"admit_ratio": 1.1},
        {"admit_ratio": "all"},
        {"action": 3},
        {"status": 3},
        {"retry_after_seconds": -1},
        {"subject": "another.one"},
    ],
    ids=str,
)
def test_a_malformed_state_is_ignored_and_admits(mirror: Mirror, fields: dict[str, Any]) -> None:
    mirror.put(active())
    value = msgspec.json.encode(active() | fields)
    assert mirror.states.put(SUBJECT, value, mirror.now, STAMP) == "malformed_state"
    assert mirror.decision() == ("continue", "unknown")


@pytest.mark.parametrize("value", [b"", b"null", b"[]", b"\xff", b"{", b"[" * 5000], ids=repr)
def test_anything_but_a_json_object_is_neither_a_state_nor_a_heartbeat(mirror: Mirror, value: bytes) -> None:
    mirror.put(active())
    assert mirror.states.put(HEARTBEAT, value, mirror.now, STAMP) == "malformed_heartbeat"
    assert mirror.decision()[0] == "reject"
    assert mirror.states.put(SUBJECT, value, mirror.now, STAMP) == "malformed_state"
    assert mirror.decision()[0] == "continue"


def test_keys_of_others_and_of_later_versions_are_left_alone(mirror: Mirror) -> None:
    assert mirror.states.put("=other.key", b"?", mirror.now, STAMP) is None
    assert Mirror("orders.>").put(active("invoices")) is None


def test_the_states_are_bounded_and_the_oldest_makes_room() -> None:
    mirror = Mirror(max_keys=2)
    assert mirror.put(active("a"), active("b"), active("a"), active("c")) == "keys_refused"
    assert set(mirror.states.states) == {"a", "c"}, "without the one that was written longest ago"
    assert [mirror.decision(subject)[0] for subject in "abc"] == ["reject", "continue", "reject"]
    assert mirror.put(active("c")) is None


@pytest.mark.parametrize("how", [state, active])
@pytest.mark.parametrize("reverse", [False, True])
def test_on_equal_terms_the_subjects_own_state_decides_and_the_strictest_otherwise(
    mirror: Mirror, how: Any, reverse: bool
) -> None:
    """As the sidecar decides."""
    names = ["orders.*", SUBJECT, "orders.>"]
    mirror.put(*(how(name) for name in sorted(names, reverse=reverse)))
    cached = CachedAdmission(SUBJECT)
    mirror.states.refresh(cached, mirror.now)
    assert cached.deciding is not None and cached.deciding.subject == SUBJECT
    mirror.put(active("orders.>", pressure=9.0))
    mirror.states.refresh(cached, mirror.now)
    assert cached.deciding.subject == "orders.>"


def test_an_action_of_a_newer_version_admits(mirror: Mirror) -> None:
    mirror.put(active())
    assert mirror.states.put(SUBJECT, msgspec.json.encode(active(action="frobnicate")), mirror.now, STAMP) is None
    assert mirror.decision() == ("continue", "known")


def test_a_heartbeat_proves_nothing_of_states_of_a_higher_schema(mirror: Mirror) -> None:
    mirror.put(active(schema=2))
    mirror.now += 8
    mirror.heartbeat()
    mirror.now += 8
    mirror.heartbeat()
    assert mirror.decision()[1] == "stale"
    mirror.heartbeat(schema=2)
    mirror.now += 1
    mirror.heartbeat(schema=2)
    assert mirror.decision() == ("reject", "known")
