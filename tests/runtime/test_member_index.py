"""The index of members: against looking through all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.member_index import MemberIndex

SUBJECTS = ("a", "b", "c")
KEYS = tuple(ConsumerKey(stream, name) for stream in ("S", "T") for name in ("x", "y"))
CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "remove_all"]), st.sampled_from(SUBJECTS), st.sampled_from(KEYS))
)


@given(CHANGES)
def test_it_agrees_with_looking_through_all(changes: list[tuple[str, str, ConsumerKey]]) -> None:
    index, members = MemberIndex(), {subject: set[ConsumerKey]() for subject in SUBJECTS}
    for change, subject, key in changes:
        match change:
            case "add":
                index.add(subject, key)
                members[subject].add(key)
            case "remove":
                index.remove(subject, key)
                members[subject].discard(key)
            case _:
                index.remove_all(subject, list(members[subject]))
                members[subject].clear()
        for stream in ("S", "T"):
            shown = {key: set(subjects) for key, subjects in index.of_stream(stream).items()}
            assert shown == {
                key: {s for s in SUBJECTS if key in members[s]}
                for key in KEYS
                if key.stream == stream and any(key in members[s] for s in SUBJECTS)
            }
        assert index.streams() == {key.stream for keys in members.values() for key in keys}
        for s in SUBJECTS:
            assert set(index.streams_of(s)) == {key.stream for key in members[s]}
