"""What is concluded from what was seen: no gap and no clock may make a stale calm look fresh."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.client import state_mirror as room
from nats_backpressure.client.gate import Gate
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.subject_filter import MOST_WATCHED, SubjectFilter, overlap
from nats_backpressure.protocol.subjects import HEARTBEAT, encode
from tests.worlds.state_bucket import SUBJECT, active, state

STAMP = 1_800_000_000.0
"""The server's time, far from ours."""


class Seen:
    """A picture with a hand on its clock."""

    def __init__(self, *interest: str) -> None:
        self.picture, self.now = StateMirror(), 1000.0
        self.picture.interest.add(interest or (">",))
        self._sampled = 0

    def put(self, *states: dict[str, Any], age: float = 0.0) -> str | None:
        wrong = None
        for found in states:
            value, key = msgspec.json.encode(found), encode(found["subject"])
            wrong = self.picture.put(key, value, self.now - age, STAMP + self.now - age)
        return wrong

    def beat(self, age: float = 0.0, lag: float = 0.0, **fields: Any) -> str | None:
        at = msgspec.json.encode({"sampled_at": rfc3339(STAMP + self.now - age - lag), "instance": "i", **fields})
        return self.picture.put(HEARTBEAT, at, self.now - age, STAMP + self.now - age)

    def ratio(self, subject: str = SUBJECT) -> float:
        gate = Gate(subject)
        self.picture.refresh(gate, self.now)
        return gate.ruling.ratio

    def says(self, subject: str = SUBJECT) -> tuple[str, str]:
        gate = Gate(subject)
        self.picture.refresh(gate, self.now)
        return gate.ruling.action, gate.ruling.freshness


def rfc3339(unix: float) -> str:
    return datetime.fromtimestamp(unix, UTC).isoformat()


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_a_state_is_known_while_heartbeats_come_and_ages_without(seen: Seen) -> None:
    seen.put(active())
    ages = []
    for step in range(12):
        if step < 5:
            seen.beat()
        ages.append(seen.says()[1])
        seen.now += 8
    assert ages[:6] == ["known"] * 6
    assert ages[6:8] == ["stale"] * 2 and set(ages[8:]) == {"unknown"}


def test_a_heartbeat_whose_sampling_stands_still_proves_nothing(seen: Seen) -> None:
    seen.put(active())
    seen.beat(sampled_at="2026-01-01T00:00:00.000Z")
    for _ in range(4):
        seen.now += 8
        seen.beat(sampled_at="2026-01-01T00:00:00.000Z")
    assert seen.says() == ("continue", "unknown")


def test_two_instances_that_stand_still_in_turn_prove_nothing(seen: Seen) -> None:
    seen.put(active())
    for step in range(8):
        seen.beat(instance=f"i{step % 2}", sampled_at=f"2026-01-01T00:00:0{step % 2}.000Z")
        seen.now += 5
    assert seen.says() == ("continue", "unknown")


def test_a_heartbeat_that_has_sampled_nothing_proves_nothing(seen: Seen) -> None:
    seen.put(active())
    seen.now += 31
    seen.beat(sampled_at=None)
    assert seen.says()[1] == "unknown"


def test_a_clock_that_is_hours_off_costs_one_heartbeat_at_most(seen: Seen) -> None:
    seen.put(state(), age=7200)
    seen.beat(lag=3600)
    assert seen.says()[1] == "unknown"
    seen.now += 2
    seen.beat(lag=3600)
    assert seen.says()[1] == "known"
    seen.beat(lag=-3600)
    assert seen.says()[1] == "known"


def test_a_late_start_after_the_sidecar_died_does_not_take_an_old_calm_for_fresh(seen: Seen) -> None:
    seen.picture.begin()
    seen.put(state(on_unknown="reject"), age=5000)
    seen.beat(age=3600)
    seen.picture.complete(seen.now)
    assert seen.says() == ("reject", "unknown")


def test_a_heartbeat_of_a_snapshot_proves_nothing_before_the_last_state_is_in(seen: Seen) -> None:
    seen.put(state())
    seen.now += 20
    seen.picture.begin()
    seen.beat()
    assert seen.says() == ("continue", "stale")
    seen.put(active())
    seen.picture.complete(seen.now)
    assert seen.says() == ("reject", "known")


def test_a_state_that_vanished_stays_and_ages_whatever_beats(seen: Seen) -> None:
    seen.put(active())
    seen.beat()
    seen.now += 5
    seen.picture.begin()
    seen.beat()
    seen.picture.complete(seen.now)
    assert seen.says() == ("reject", "known")
    seen.now += 6
    seen.beat()
    assert seen.says() == ("throttle", "stale")
    seen.now += 60
    seen.beat()
    assert seen.says() == ("continue", "unknown")
    seen.put(state())
    assert seen.says() == ("continue", "known")


def test_a_state_that_vanished_long_ago_is_let_go(seen: Seen) -> None:
    seen.put(active())
    for _ in range(2):
        seen.picture.begin()
        seen.picture.complete(seen.now)
        seen.now += room.ORPHAN_LIFE + 1
    seen.picture.begin()
    seen.picture.complete(seen.now)
    assert not seen.picture.entries


def test_a_state_that_was_deleted_is_gone_at_once(seen: Seen) -> None:
    seen.put(active(), active("orders.*"))
    seen.picture.delete(SUBJECT)
    seen.picture.delete("orders.=2A")
    seen.picture.delete("not.=canonical")
    assert seen.says() == ("continue", "unknown") and not seen.picture.entries


def test_a_state_that_is_not_known_ages_whatever_beats_and_however_often_it_is_written(seen: Seen) -> None:
    """One stream cannot be read: the others' heartbeats prove nothing about its subject."""
    seen.put(active("another"), active())
    lost = active(freshness="stale", proof_age_ms=10_000)
    said = []
    for n in range(8):
        seen.beat()
        seen.put(lost | {"proof_age_ms": 10_000 + 1000 * n})  # written again, for an alert say
        said.append(seen.says())
        seen.now += 1
    assert said == [("reject", "stale")] + [("throttle", "stale")] * 3 + [("continue", "stale")] * 4
    assert seen.says("another") == ("reject", "known")
    seen.put(active())
    assert seen.says() == ("reject", "known")


@pytest.mark.parametrize("age", [{}, {"proof_age_ms": None}, {"proof_age_ms": 0}], ids=str)
def test_a_subject_the_sidecar_lost_holds_from_its_last_proof(seen: Seen, age: dict[str, Any]) -> None:
    lost = active(status="unknown", freshness="unknown", **age)
    seen.put(active())
    seen.put(lost)
    said = []
    for _ in range(4):
        seen.now += 4
        seen.beat()
        if not age.get("proof_age_ms", 1):
            seen.put(lost | {"proof_age_ms": 1000 * (seen.now - 1000)})
        else:
            seen.put(lost)  # written again by a sidecar that does not say how old it is: the hold goes on
        said.append(seen.says())
    assert said == [("reject", "unknown")] * 2 + [("throttle", "unknown"), ("continue", "unknown")]
    seen.put(active())
    assert seen.says() == ("reject", "known")


@pytest.mark.parametrize("on_unknown", ["hold", "reject"])
def test_what_was_lost_before_anybody_watched_is_as_old_as_it_says(seen: Seen, on_unknown: str) -> None:
    lost = active(status="unknown", freshness="unknown", on_unknown=on_unknown)
    open_ = ("continue" if on_unknown == "hold" else "reject", "unknown")
    seen.put(lost)
    assert seen.says() == open_, "how old it is nobody says: it is old"
    seen.put(lost | {"proof_age_ms": 5000})
    assert seen.says() == ("reject", "unknown")
    seen.now += 9
    assert seen.says() == open_


@pytest.mark.parametrize("override", ["reject", "open"])
def test_an_override_holds_while_a_sidecar_is_there_to_end_it(seen: Seen, override: str) -> None:
    said = active if override == "reject" else state
    word = "reject" if override == "reject" else "continue"
    seen.put(said(status="unknown", freshness="unknown", proof_age_ms=0, on_unknown="reject",
                  override={"action": override, "until": "2027-01-01T00:00:00.000Z"}))  # fmt: skip
    for _ in range(10):
        seen.now += 5
        seen.beat()
        assert seen.says() == (word, "unknown")


def test_an_override_does_not_outlive_the_sidecar_that_would_end_it(seen: Seen) -> None:
    seen.put(active(override={"action": "reject", "until": "2027-01-01T00:00:00.000Z"}))
    seen.now += 14
    assert seen.says() == ("continue", "stale")


def test_a_replica_that_leaves_as_the_last_opens_at_once_a_quarter_a_second(seen: Seen) -> None:
    seen.put(active(), active("strict", on_unknown="reject"), active("quick", on_unknown="continue"))
    seen.beat()
    seen.now += 2
    seen.beat(leaving=True)
    said = []
    for _ in range(5):
        said.append((*seen.says(), seen.ratio()))
        seen.now += 1
    assert said == [
        ("reject", "stale", 0.0),
        *(("throttle", "stale", n / 4) for n in (1, 2, 3)),
        ("continue", "stale", 1),
    ]
    assert seen.says("strict")[0] == "reject" and seen.says("quick")[0] == "continue"


def test_a_gateway_that_starts_after_the_last_replica_left_is_open(seen: Seen) -> None:
    seen.picture.begin()
    seen.put(active(), age=6)
    seen.beat(age=5, leaving=True)
    seen.picture.complete(seen.now)
    assert seen.says() == ("continue", "stale")


@pytest.mark.parametrize("how", ["another replica beats", "it comes back", "another replica writes the state"])
def test_a_leave_counts_only_until_somebody_is_there(seen: Seen, how: str) -> None:
    seen.put(active())
    seen.beat()
    seen.beat(instance="other")
    seen.now += 1
    seen.beat(leaving=True)
    seen.now += 2
    assert seen.says() == ("throttle", "stale")
    match how:
        case "another replica beats":
            seen.beat(instance="other")
        case "it comes back":
            seen.beat()
        case _:
            seen.put(active())
    assert seen.says() == ("reject", "known")


def test_one_that_stands_still_takes_no_leave_back(seen: Seen) -> None:
    seen.put(active())
    seen.beat(instance="stuck", sampled_at="2027-01-15T08:00:00.000Z")
    seen.beat()
    seen.beat(leaving=True)
    seen.now += 4
    seen.beat(instance="stuck", sampled_at="2027-01-15T08:00:00.000Z")
    assert seen.says() == ("continue", "stale")


def test_slow_heartbeats_make_nothing_stale(seen: Seen) -> None:
    """`stale_after_seconds: 2` beside a heartbeat every 5 s: a state must not be stale between two of them."""
    seen.put(active())
    for _ in range(5):
        seen.beat(stale_after_ms=2000, unknown_after_ms=4000, heartbeat_ms=5000)
        seen.now += 5
        assert seen.says() == ("reject", "known")
    seen.now += 9.9
    assert seen.says() == ("reject", "known")
    seen.now += 4.1
    assert seen.says() == ("continue", "stale")
    seen.now += 12
    assert seen.says() == ("continue", "unknown")


def test_a_watch_is_blind_only_once_no_instance_beats_any_more(seen: Seen) -> None:
    assert not seen.picture.blind(seen.now), "nothing was promised yet"
    seen.beat(instance="one")
    seen.now += 9
    seen.beat(instance="two")
    seen.now += 9
    assert not seen.picture.blind(seen.now)
    seen.now += 1
    assert seen.picture.blind(seen.now)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=300))
def test_the_newest_instance_is_never_refused_however_many_there_were(instances: list[int]) -> None:
    """A gateway outlives many rollouts, and each brings instances with new names."""
    seen = Seen()
    seen.put(active())
    for n in instances:
        seen.now += 40
        seen.beat(instance=f"pod-{n}")
        assert seen.says() == ("reject", "known")
        assert len(seen.picture._pulse.sampled) <= room.MOST_INSTANCES  # type: ignore[union-attr]


def test_a_literal_is_governed_by_every_state_that_covers_it_and_the_worst_decides(seen: Seen) -> None:
    seen.put(state(SUBJECT), active("orders.*"), state("orders.>", action="throttle", admit_ratio=0.5))
    assert seen.says()[0] == "reject"
    assert seen.says("orders.eu.created")[0] == "throttle"
    assert seen.says("orders.>")[0] == "throttle"
    assert seen.says("orders.*.created")[0] == "continue", "a pattern is about itself alone"
    seen.picture.delete("orders.=2A")
    assert seen.says()[0] == "throttle"


@pytest.mark.parametrize(
    "fields",
    [
        {"admit_ratio": -0.1},
        {"admit_ratio": 1.1},
        {"admit_ratio": "all"},
        {"action": "frobnicate"},
        {"status": 3},
        {"retry_after_seconds": -1},
        {"subject": "another.one"},
    ],
    ids=str,
)
def test_a_state_that_cannot_be_is_none_and_admits(seen: Seen, fields: dict[str, Any]) -> None:
    seen.put(active())
    value = msgspec.json.encode(active() | fields)
    assert seen.picture.put(SUBJECT, value, seen.now, STAMP) == "malformed_state"
    assert seen.says() == ("continue", "unknown")


@pytest.mark.parametrize("value", [b"", b"null", b"[]", b"\xff", b"{", b"[" * 5000], ids=repr)
def test_what_is_no_json_object_is_no_state_and_no_heartbeat(seen: Seen, value: bytes) -> None:
    seen.put(active())
    assert seen.picture.put(HEARTBEAT, value, seen.now, STAMP) == "malformed_heartbeat"
    assert seen.says()[0] == "reject"
    assert seen.picture.put(SUBJECT, value, seen.now, STAMP) == "malformed_state"
    assert seen.says()[0] == "continue"


def test_keys_of_others_and_of_later_versions_are_left_alone(seen: Seen) -> None:
    assert seen.picture.put("=other.key", b"?", seen.now, STAMP) is None
    assert Seen("orders.>").put(active("invoices")) is None


def test_what_is_kept_is_bounded(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MOST_KEYS", 2)
    assert seen.put(state("a"), state("b"), state("c")) == "keys_refused"
    assert seen.put(state("a")) is None


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("a.b", "a.b", True), ("a.b", "a.c", False), ("a.*", "*.b", True), ("a.*", "b.*", False), ("a", "a.b", False),
        ("a.>", "a.b.c", True), ("a.>", "a", False), (">", "a.*", True), ("a.>", "*.b", True), ("a.*.c", "a.b.>", True),
    ],
)  # fmt: skip
def test_two_patterns_meet_where_a_subject_matches_both(one: str, other: str, meet: bool) -> None:
    assert overlap(one, other) is meet is overlap(other, one)


def test_what_is_wanted_is_what_governs_the_subjects_named() -> None:
    interest = SubjectFilter()
    assert interest.add(["orders.created", "bills.*"]) and not interest.add(["bills.eu", "orders.created"])
    wanted = ["orders.created", "orders.*", ">", "bills.eu", "bills.*", "*.eu"]
    assert [s for s in [*wanted, "orders.gone", "bills.eu.x", "orders.*.x"] if interest.wants(s)] == wanted
    with pytest.raises(ValueError, match="a pattern"):
        interest.add(f"s{n}" for n in range(MOST_WATCHED + 1))
    assert not interest.wants("s1")


@pytest.mark.parametrize("how", [state, active])
@pytest.mark.parametrize("reverse", [False, True])
def test_on_equal_terms_the_subjects_own_state_decides_and_the_strictest_otherwise(
    seen: Seen, how: Any, reverse: bool
) -> None:
    """As the sidecar decides."""
    names = ["orders.*", SUBJECT, "orders.>"]
    seen.put(*(how(name) for name in sorted(names, reverse=reverse)))
    gate = Gate(SUBJECT)
    seen.picture.refresh(gate, seen.now)
    assert gate.decides is not None and gate.decides.subject == SUBJECT
    seen.put(active("orders.>", pressure=9.0))
    seen.picture.refresh(gate, seen.now)
    assert gate.decides.subject == "orders.>"
