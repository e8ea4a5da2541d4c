"""Which members of a stream still count: an unread one holds no subject, an unreadable one is not removed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.subject.membership import GONE_AFTER, ROUNDING, ReadState, confirmed_gone, membership
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.protocol.values import ConsumerKey

ALL = [WatchEntry("*")]
A, B = ConsumerKey("S", "a"), ConsumerKey("S", "b")


@pytest.mark.parametrize(
    ("shown", "watch", "expected"),
    [
        pytest.param(ReadState({A: ("x",)}), ALL, "counts", id="one that counts there stays"),
        pytest.param(ReadState({A: ("y",)}), ALL, "out", id="one that stands elsewhere now is out at once"),
        pytest.param(ReadState({A: ()}), ALL, "out", id="and one that does not count at all"),
        pytest.param(ReadState({A: ()}, unread=("b",)), ALL, "out", id="whatever else cannot be read"),
        pytest.param(ReadState({}, complete=True), ALL, "absent", id="one that a whole answer lacks is absent"),
        pytest.param(
            ReadState({}, unread=("b",), complete=True), ALL, "absent", id="also beside one that cannot be read"
        ),
        pytest.param(
            ReadState({}, unread=("a",), complete=True), ALL, "silent", id="one that cannot be read is neither"
        ),
        pytest.param(ReadState({}), ALL, "silent", id="nor is one that part of an answer lacks"),
        pytest.param(
            ReadState({}), [WatchEntry("*", ("b*",))], "out", id="a name the watch leaves out is asked about no more"
        ),
        pytest.param(ReadState({}), [WatchEntry("T")], "out", id="nor is one of a stream that it leaves out"),
    ],
)
def test_a_member_after_one_answer(shown: ReadState, watch: list[WatchEntry], expected: str) -> None:
    got = membership([(A, "x")], shown, watch, ())
    everywhere = {"out": {key for key, _ in got.removed}, "absent": got.absent, "silent": got.unread}
    assert [where for where, keys in everywhere.items() if A in keys] == ([] if expected == "counts" else [expected])


def test_gone_takes_two_answers_a_second_apart() -> None:
    since, sure = confirmed_gone({}, [A], [], 10.0)
    assert sure == []
    since, sure = confirmed_gone(since, [A], [], 10.9)
    assert sure == []
    assert confirmed_gone(since, [A], [], 11.0) == ({}, [A])


def test_one_that_shows_again_was_never_gone() -> None:
    since, _ = confirmed_gone({}, [A], [], 10.0)
    since, _ = confirmed_gone(since, [], [A], 10.5)
    assert confirmed_gone(since, [A], [], 11.2)[1] == []


def test_an_answer_that_says_nothing_of_it_neither_proves_nor_disproves() -> None:
    since, _ = confirmed_gone({}, [A, B], [], 10.0)
    since, _ = confirmed_gone(since, [B], [], 10.5)
    assert set(confirmed_gone(since, [A, B], [], 11.0)[1]) == {A, B}


@given(st.lists(st.tuples(st.floats(0.01, 2), st.sets(st.sampled_from("abc")), st.sets(st.sampled_from("abc")))))
def test_gone_is_only_who_was_absent_twice_and_not_seen_in_between(
    steps: list[tuple[float, set[str], set[str]]],
) -> None:
    since: dict[ConsumerKey, float] = {}
    first: dict[str, float] = {}
    now = 0.0
    for after, absent, there in steps:
        now += after
        since, sure = confirmed_gone(
            since, [ConsumerKey("S", n) for n in absent - there], [ConsumerKey("S", n) for n in there], now
        )
        first = {n: at for n, at in first.items() if n not in there}
        for name in absent - there:
            first.setdefault(name, now)
        expected = {name for name in absent - there if now - first[name] >= GONE_AFTER - ROUNDING}
        assert {key.consumer for key in sure} == expected
        first = {n: at for n, at in first.items() if n not in expected}
