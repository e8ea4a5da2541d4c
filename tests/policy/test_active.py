"""The policies in force while the sidecar runs."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.policy.active import ActivePolicies, Metadata
from nats_backpressure.policy.external import OVERRIDES
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.refusals import LONGEST_ERROR, MOST_ERRORS, RefusedPolicy
from nats_backpressure.policy.schema import Guard
from nats_backpressure.policy.snapshot import PolicySnapshot, PolicyValue
from nats_backpressure.protocol.timestamps import format_rfc3339
from nats_backpressure.protocol.values import ConsumerKey

FILE = (PolicyEntry(("a.>",), fields=(("pending.overload", 5000),)),)
KEY = ConsumerKey("S", "c")
OWN = (("backpressure.pending.overload", "700"),)
NOW = 1_767_225_600.0


def value(document: object, revision: int = 1) -> PolicyValue:
    return PolicyValue(msgspec.json.encode(document), revision, NOW)


def snapshot(**entries: PolicyValue) -> PolicySnapshot:
    return PolicySnapshot("bucket", {key.replace("_", "."): entry for key, entry in entries.items()})


def overload(policies: ActivePolicies, subject: str = "a.b", key: ConsumerKey | None = None) -> float:
    return policies.effective(subject, key).policy.pending.overload


def policies(trust: bool = True, guard: Guard = Guard()) -> ActivePolicies:  # noqa: B008
    return ActivePolicies(FILE, guard, trust)


def test_the_layers_are_default_file_bucket_and_metadata() -> None:
    active = policies()
    assert (overload(active, "other"), overload(active)) == (1000, 5000)
    assert active.set_bucket(snapshot(a_b=value({"pending": {"overload": 6000}}))) == []
    assert overload(active) == 6000
    assert active.set_metadata(KEY, OWN, ("a.b",)) == (True, None)
    assert (overload(active, key=KEY), overload(active)) == (700, 6000)
    active.forget(KEY)
    assert overload(active, key=KEY) == 6000


def test_a_bad_value_is_refused_once_and_the_last_good_one_stays() -> None:
    active = policies()
    active.set_bucket(snapshot(a_b=value({"pending": {"overload": 6000}})))
    bad = snapshot(a_b=value({"pending": {"overload": "many"}}, revision=2))
    (refusal,) = active.set_bucket(bad)
    assert (refusal.subject, refusal.rejection.mark) == ("a.b", "bucket:2")
    assert refusal.rejection.errors[0][0] == "pending.overload"
    assert active.set_bucket(bad) == []
    assert overload(active) == 6000
    active.set_bucket(snapshot())
    assert overload(active) == 5000


def test_a_value_with_the_revision_of_another_one_is_read_where_the_bucket_went_back() -> None:
    active = policies()
    before = value({"pending": {"overload": 6000}}, revision=2)
    active.set_bucket(snapshot(a_b=before))
    after = replace(value({"pending": {"overload": 7000}}, revision=2), at=before.at + 60)
    active.set_bucket(snapshot(a_b=after))
    assert overload(active) == 7000


def test_steps_put_everything_in_force_at_once_and_last() -> None:
    active = policies()
    bucket = snapshot(a_b=value({"pending": {"overload": 6000}}), bad=value({"pending": 1}))
    steps = active.bucket_steps(bucket)
    assert next(steps) is None and overload(active) == 5000
    refusal = next(steps)
    assert refusal is not None and refusal.subject == "bad" and overload(active) == 5000
    assert next(steps, "the end") == "the end" and overload(active) == 6000
    steps = active.file_steps((), Guard(max_pending_overload=100))
    refusals = [refusal.subject for refusal in steps if refusal is not None and overload(active) == 6000]
    assert refusals == ["a.b"] and overload(active) == 1000, "the other is as bad as before"


def test_a_bad_override_and_a_bad_key_are_refused_under_their_own_names() -> None:
    active = policies()
    bad = PolicySnapshot("b", {f"{OVERRIDES}a.b": value({"action": "close"}), "a.=zz": value({})})
    assert [refusal.subject for refusal in active.set_bucket(bad)] == [f"{OVERRIDES}a.b", "a.=zz"]


def test_an_override_ends_by_itself() -> None:
    active = policies()
    until = format_rfc3339(NOW + 60)
    active.set_bucket(PolicySnapshot("b", {f"{OVERRIDES}a.b": value({"action": "open", "until": until})}))
    assert len(active.effective("a.b").policy.override) == 1
    assert not active.expire(NOW + 59)
    assert active.expire(NOW + 60)
    assert not active.expire(NOW + 60)
    assert active.effective("a.b").policy.override == ()


def test_a_clock_that_jumped_ahead_and_back_ends_no_override_for_good() -> None:
    active = policies()
    open_, reject = (value({"action": action, "until": format_rfc3339(NOW + 60)}) for action in ("open", "reject"))
    active.set_bucket(PolicySnapshot("b", {f"{OVERRIDES}a.b": open_}))
    assert not active.expire(NOW) and active.expire(NOW + 3600)
    active.set_bucket(PolicySnapshot("b", {f"{OVERRIDES}a.b": open_, f"{OVERRIDES}a.c": reject}))
    assert active.effective("a.b").policy.override == active.effective("a.c").policy.override == ()
    assert active.expire(NOW + 1) and not active.expire(NOW + 1)
    assert [active.effective(subject).policy.override[0].action for subject in ("a.b", "a.c")] == ["open", "reject"]
    assert active.expire(NOW + 60) and active.effective("a.b").policy.override == ()


def test_a_new_file_is_below_the_same_bucket_which_is_checked_again() -> None:
    active = policies()
    active.set_bucket(snapshot(a_b=value({"pending": {"critical": 4000}})))
    active.set_metadata(KEY, OWN, ("a.b",))
    (refusal,) = active.set_file((), Guard())
    assert refusal.rejection.errors[0][0] == "pending.critical"
    assert overload(active, "a.c") == 1000
    assert overload(active, key=KEY) == 700


def test_metadata_is_used_only_where_it_is_trusted() -> None:
    active = policies(trust=False)
    assert active.set_metadata(KEY, OWN, ("a.b",)) == (False, None)
    assert overload(active, key=KEY) == 5000


def test_bad_metadata_is_refused_and_the_last_good_stays() -> None:
    active = policies()
    active.set_metadata(KEY, OWN, ("a.b",))
    changed, refusal = active.set_metadata(KEY, (("backpressure.pending.overload", "many"),), ("a.b",))
    assert not changed
    assert refusal is not None and refusal.stays
    assert refusal.rejection.errors[0][0] == "backpressure.pending.overload"
    assert overload(active, key=KEY) == 700


TOO_HIGH = (("backpressure.pending.critical", "6000"),)
"""Refused where `a.b` inherits an overload of 5000."""
MANY = (("backpressure.pending.overload", "many"),)
STRICT = Guard(min_pending_overload=1000)


@pytest.mark.parametrize(
    ("read", "file", "guard", "at_once", "after", "refused"),
    [
        pytest.param((OWN,), FILE, Guard(), 700, 700, False, id="a good one stays"),
        pytest.param((OWN, MANY), FILE, Guard(), 700, 700, True, id="the last good one stays, and the bad one is told"),
        pytest.param((OWN,), FILE, STRICT, 5000, 5000, True, id="one that the guard forbids now goes, and is told"),
        pytest.param((OWN, MANY), FILE, STRICT, 5000, 5000, True, id="so does the last good one"),
        pytest.param((TOO_HIGH,), FILE, Guard(), 5000, 5000, True, id="one that was refused is not let in unchecked"),
        pytest.param((TOO_HIGH,), (), Guard(), 1000, 1000, True, id="nor where the file inherits less"),
        pytest.param((MANY, OWN), (), Guard(), 700, 700, False, id="a mistake that was corrected is over"),
    ],
)
def test_a_file_that_is_read_again_leaves_the_policies_of_metadata(
    read: tuple[tuple[tuple[str, str], ...], ...],
    file: tuple[PolicyEntry, ...],
    guard: Guard,
    at_once: float,
    after: float,
    refused: bool,
) -> None:
    active = policies()
    for metadata in read:
        active.set_metadata(KEY, metadata, ("a.b",))
    active.set_file(file, guard)
    assert overload(active, key=KEY) == at_once
    changed, refusal = active.set_metadata(KEY, read[-1], ("a.b",))
    assert not changed and (refusal is not None) == refused, "the next reading checks it, once"
    assert overload(active, key=KEY) == after
    assert active.set_metadata(KEY, read[-1], ("a.b",)) == (False, None)


LATE = (("backpressure.pending.warn", "90"),)
READ = st.sampled_from([(), OWN, TOO_HIGH, MANY, LATE])
HELD = st.sampled_from([None, {"pending": {"overload": 8000}}, {"pending": {"critical": 80}}, {"pending": 1}])


@given(st.lists(st.tuples(HELD, READ), min_size=1, max_size=6))
@example([({"pending": {"overload": 8000}}, ()), (None, TOO_HIGH), ({"pending": {"overload": 8000}}, TOO_HIGH)])
@example([(None, LATE), ({"pending": {"critical": 80}}, LATE)])
def test_metadata_that_is_not_refused_is_judged_as_by_a_replica_that_starts_now_whatever_the_bucket_held(
    steps: list[tuple[object, Metadata]],
) -> None:
    old, restarted = policies(), policies()
    told: list[tuple[Metadata, RefusedPolicy]] = []
    for revision, (document, metadata) in enumerate(steps):
        held = snapshot() if document is None else snapshot(a_b=value(document, revision))
        for active in (old, restarted) if revision == len(steps) - 1 else (old,):
            active.set_bucket(held)
        _, refusal = old.set_metadata(KEY, metadata, ("a.b",))
        if refusal is not None:
            assert told[-1:] != [(metadata, refusal)] or steps[revision - 1] != (document, metadata), "told once"
            told.append((metadata, refusal))
        assert old.set_metadata(KEY, metadata, ("a.b",)) == (False, None)
    _, refused = restarted.set_metadata(KEY, metadata, ("a.b",))
    if refused is None and old.mark == restarted.mark:
        assert old.effective("a.b", KEY).policy == restarted.effective("a.b", KEY).policy


def test_metadata_that_does_not_fit_to_a_new_policy_of_the_bucket_stays_and_is_refused_once() -> None:
    active = policies()
    active.set_metadata(KEY, LATE, ("a.b",))
    active.set_bucket(snapshot(a_b=value({"pending": {"critical": 80}})))
    changed, refusal = active.set_metadata(KEY, LATE, ("a.b",))
    assert not changed and refusal is not None and refusal.stays
    for revision, (document, refused) in enumerate([({"pending": 1}, False), ({"retry_after_seconds": 7}, False)], 2):
        active.set_bucket(snapshot(a_b=value(document, revision)))
        assert (active.set_metadata(KEY, LATE, ("a.b",))[1] is not None) == refused


@pytest.mark.parametrize("metadata", [MANY, (*OWN, ("backpressure.new", "1"))], ids=["refused", "ignored in part"])
def test_each_of_many_consumers_with_one_mistake_is_named_in_a_refusal_of_its_own(
    metadata: tuple[tuple[str, str], ...],
) -> None:
    active = policies()
    named = {
        f"worker-{n:02}": active.set_metadata(ConsumerKey("S", f"worker-{n:02}"), metadata, ())[1] for n in range(20)
    }
    marks = {refusal.rejection.mark for refusal in named.values() if refusal is not None}
    assert len(marks) == len(named)
    for name, refusal in named.items():
        assert refusal is not None
        ((_, message),) = refusal.rejection.errors
        assert message.startswith(f"metadata of {name} on S: ")
        assert message.endswith("ignored, the rest is in force") == refusal.in_force


def test_the_same_metadata_changes_nothing() -> None:
    active = policies()
    assert active.set_metadata(KEY, (), ()) == (False, None)
    assert active.set_metadata(KEY, OWN, ()) == (True, None)
    assert active.set_metadata(KEY, OWN, ()) == (False, None)


def test_what_is_in_force_can_be_put_in_force_again() -> None:
    active = policies()
    active.set_bucket(snapshot(a_b=value({"pending": {"overload": 6000}})))
    active.set_metadata(KEY, OWN, ("a.b",))
    other = ActivePolicies((), Guard(), trust_metadata=False)
    other.restore(active.sources)
    assert other.sources == active.sources
    assert overload(other) == 6000
    other.set_metadata(KEY, OWN, ("a.b",))
    other.restore(policies(trust=False).sources)
    assert (overload(other), overload(other, key=KEY)) == (5000, 5000)
    active.restore(active.sources)
    assert overload(active, key=KEY) == 700


def test_what_a_refusal_repeats_is_bounded() -> None:
    document = {"mode": 1, "alerts": [f"wrong{n}" for n in range(29)]}
    (refusal,) = policies().set_bucket(snapshot(a_b=value(document)))
    assert len(refusal.rejection.errors) == MOST_ERRORS + 1
    assert refusal.rejection.errors[-1] == ("", "and 10 more problems")
    assert all(len(text) <= LONGEST_ERROR + 3 for error in refusal.rejection.errors for text in error)


VALUES = (
    None,
    {"pending": {"overload": 6000}},
    {"pending": {"overload": 7000}},
    {"pending": {"overload": "many"}},
    {"pending": {"critical": 5500}},
)
"""Of one key: nothing, good ones, a bad one, and one that is good only above some files."""
SETTINGS = (
    (FILE, Guard()),
    (FILE, Guard(max_pending_overload=6500)),
    ((), Guard(allow_bucket=False)),
    ((PolicyEntry(("a.>",), fields=(("pending.overload", 9000),)),), Guard()),
)


@given(st.lists(st.tuples(st.sampled_from(SETTINGS), st.sampled_from(VALUES)), min_size=1, max_size=6))
def test_replicas_of_one_mark_have_one_policy_whatever_each_of_them_has_seen(
    steps: list[tuple[tuple[tuple[PolicyEntry, ...], Guard], object]],
) -> None:
    old, restarted = policies(), policies()
    alike = policies()
    for revision, ((file, guard), document) in enumerate(steps):
        held = snapshot() if document is None else snapshot(a_b=value(document, revision))
        for active in (old, alike, restarted) if revision == len(steps) - 1 else (old, alike):
            active.set_file(file, guard)
            active.set_bucket(held)
    assert old.mark == alike.mark
    if old.mark == restarted.mark:
        assert overload(old) == overload(restarted)
    if not old.refused:
        assert old.mark == restarted.mark, "what the bucket holds is common to all"


def test_a_refusal_says_whether_an_earlier_value_stays() -> None:
    bad = snapshot(a_b=value({"pending": 1}, revision=2))
    old, restarted = policies(), policies()
    old.set_bucket(snapshot(a_b=value({"pending": {"overload": 6000}})))
    assert [[refusal.stays for refusal in active.set_bucket(bad)] for active in (old, restarted)] == [[True], [False]]


def test_the_mark_follows_the_settings_file_and_not_what_the_bucket_holds() -> None:
    active = policies()
    mark = active.mark
    assert policies().mark == mark and len(mark) == 12
    assert len({mark, policies(trust=False).mark, policies(guard=Guard(allow_bucket=False)).mark}) == 3
    assert ActivePolicies(FILE, Guard(), trust_metadata=True, watched="another stream").mark != mark
    active.set_bucket(snapshot(a_b=value({"pending": {"overload": 6000}})))
    active.set_metadata(KEY, OWN, ("a.b",))
    assert active.mark == mark
    sources = active.sources
    active.set_file((), Guard())
    assert active.mark != mark
    active.restore(sources)
    assert active.mark == mark
