"""The event cache has no event twice, no gap, and never more than its limits."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.protocol.values import LARGEST_EVENT
from nats_backpressure.queries.event_cache import EventCache, parse_event
from tests.fakes.event_log import SUBJECT, T0, encoded_event, event


def seqs(history: EventCache, subject: str = SUBJECT) -> list[int]:
    return [cached.seq for cached in history.events_of(subject)]


def filled(*events: int, **bounds: int) -> EventCache:
    history = EventCache(T0, **bounds)
    for seq in events:
        history.add(event(seq, T0 + 1000 * seq))
    return history


def test_a_published_event_is_cached_with_its_keys() -> None:
    cached = parse_event(encoded_event(7, T0 + 5, "warning"))
    assert cached is not None and cached.subject == SUBJECT
    assert (cached.seq, cached.epoch, cached.type, cached.at) == (7, "e", "backpressure_warning", T0 + 5)
    assert cached.body == encoded_event(7, T0 + 5, "warning") and cached.event().to == "warning"


def test_an_event_added_twice_is_cached_once() -> None:
    history = filled(1, 2, 3)
    for seq in (3, 1, 2):
        history.add(event(seq, T0 + 1000 * seq))
    assert seqs(history) == [1, 2, 3] and len(history) == 3 and history.complete_since(SUBJECT) == T0


@pytest.mark.parametrize(
    ("before", "seq", "taken"),
    [
        pytest.param((), 1, True, id="the first one"),
        pytest.param((), 3, False, id="one with others before it"),
        pytest.param((1, 2), 3, True, id="the next one"),
        pytest.param((1, 2), 4, False, id="one with another before it that is on its way"),
        pytest.param((1, 2), 2, False, id="one that came already"),
    ],
)
def test_what_was_published_here_is_there_before_it_comes_where_none_is_missing_before_it(
    before: tuple[int, ...], seq: int, taken: bool
) -> None:
    history = filled(*before)
    history.add_published(event(seq, T0 + 1000 * seq))
    assert seqs(history) == [*before, *([seq] if taken else [])]
    for each in range(1, seq + 1):
        history.add(event(each, T0 + 1000 * each))
    assert seqs(history) == list(range(1, max(seq, *before, 1) + 1)) and history.complete_since(SUBJECT) == T0


def test_of_an_event_that_was_published_twice_what_is_stored_counts() -> None:
    history = filled(1)
    history.add_published(event(2, T0 + 2000))
    (_, ours), size = history.events_of(SUBJECT), history._size
    stored = replace(ours, body=ours.body.replace(b'"here"', b'"another"'))
    history.add(stored)
    assert history.events_of(SUBJECT)[1] == stored and len(history) == 2 and history._size == size + 3
    history.add_published(event(3, T0 + 3000))
    history.add(event(1, T0 + 1000))
    assert seqs(history) == [1, 2, 3]


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"hello", id="no JSON"),
        pytest.param(b"[]", id="no object"),
        pytest.param(b'{"id": "x", "seq": 1}', id="half an event"),
        pytest.param(encoded_event(1)[:-1], id="cut off"),
        pytest.param(encoded_event(1).replace(b'"e"', b'"f"'), id="an id of another epoch"),
        pytest.param(encoded_event(1).replace(b"2026-", b"20x6-"), id="no moment"),
        pytest.param(encoded_event(1).replace(b'"seq":1', b'"seq":true'), id="no number"),
        pytest.param(encoded_event(0), id="before the first"),
        pytest.param(encoded_event(2**53), id="a number that is not exact"),
        pytest.param(encoded_event(1).replace(b'"pending"', b'"\xff"'), id="not UTF-8"),
        pytest.param(encoded_event(1).replace(b'"pending"', b'"' + b"x" * LARGEST_EVENT + b'"'), id="larger than any"),
    ],
)
def test_a_message_that_is_not_an_event_is_not_parsed(payload: bytes) -> None:
    assert parse_event(payload) is None


def test_fields_that_no_version_writes_are_dropped() -> None:
    cached = parse_event(encoded_event(1)[:-1] + b',"more":"\xff"}')
    assert cached is not None and cached.body == encoded_event(1)


def test_a_subject_has_a_limit_and_a_time_since_which_it_is_complete() -> None:
    history = filled(*range(1, 11), per_subject=4)
    assert seqs(history) == [7, 8, 9, 10]
    assert history.complete_since(SUBJECT) == T0 + 6001 and history.complete_since("other") == T0


def test_beyond_the_total_limit_the_oldest_events_are_dropped() -> None:
    history = EventCache(T0, events=4)
    for n in range(1, 4):
        for subject in ("a", "b"):
            history.add(event(n, T0 + 10 * n, subject=subject))
    assert (seqs(history, "a"), seqs(history, "b")) == ([2, 3], [2, 3])
    assert history.complete_since("a") == history.complete_since("c") == T0 + 11


def test_bytes_are_limited_too() -> None:
    history = filled(*range(1, 11), size=3 * len(encoded_event(1)) + 10)
    assert seqs(history) == [8, 9, 10]


def test_a_subject_without_events_uses_no_memory() -> None:
    history = EventCache(T0, per_subject=2, events=10)
    for n in range(1000):
        for seq in (1, 2, 3):
            history.add(event(seq, T0 + n, subject=f"s.{n}"))
    assert len(history) == 10 and len(history._of) == len(history._floors) == 5


def test_after_a_missing_event_the_cache_starts_again() -> None:
    history = filled(1, 2, 5, 6)
    assert seqs(history) == [5, 6] and history.complete_since(SUBJECT) == T0 + 5001


def test_numbering_continues_in_a_new_epoch() -> None:
    history = filled(1, 2)
    history.add(event(3, T0 + 3000, epoch="f"))
    assert seqs(history) == [1, 2, 3] and history.complete_since(SUBJECT) == T0


def test_numbering_that_restarts_drops_the_events_from_that_number_on() -> None:
    history = filled(1, 2, 3)
    history.add(event(1, T0 + 9000, epoch="f"))
    assert [(e.epoch, e.seq) for e in history.events_of(SUBJECT)] == [("f", 1)]


def test_where_the_stream_went_back_the_events_that_it_still_has_stay() -> None:
    history = filled(1, 2, 3, 4, 5)
    for seq in (1, 2, 3):  # a stream that may be another one is read again from its start
        history.add(event(seq, T0 + 1000 * seq))
    history.add(event(4, T0 + 9000, epoch="f"))
    expected = [("e", 1), ("e", 2), ("e", 3), ("f", 4)]
    assert [(e.epoch, e.seq) for e in history.events_of(SUBJECT)] == expected and len(history) == 4
    history.add(event(1, T0 + 1000))  # a late copy of the earlier epoch
    assert [(e.epoch, e.seq) for e in history.events_of(SUBJECT)] == expected
    assert history.complete_since(SUBJECT) == T0


def test_events_read_from_the_stream_come_before_newer_ones() -> None:
    history = EventCache(T0 + 3500)
    for seq in (4, 5):
        history.add(event(seq, T0 + 1000 * seq))
    older = EventCache(0)
    for seq in (2, 3, 4):
        older.add(event(seq, T0 + 1000 * seq))
    older.set_complete_since(T0 - 1)
    history.merge_older(older)
    assert seqs(history) == [2, 3, 4, 5] and history.complete_since(SUBJECT) == T0 - 1
    history.add(event(6, T0 + 6000))
    assert seqs(history)[-1] == 6


def test_of_an_event_that_was_published_while_older_ones_were_read_what_is_stored_counts() -> None:
    history, older = EventCache(T0), EventCache(0)
    history.add_published(event(1, T0 + 1000))
    (ours,) = history.events_of(SUBJECT)
    stored = replace(ours, body=ours.body.replace(b'"here"', b'"another"'))
    older.add(stored)
    history.merge_older(older)
    assert history.events_of(SUBJECT) == (stored,) and history._size == len(stored.body)


@pytest.mark.parametrize("late", [7, 8], ids=["the next number", "a later number"])
def test_no_event_of_an_epoch_is_taken_after_the_stream_went_back_from_it(late: int) -> None:
    """It came while the older ones were loaded, and is added after them; then the new epoch was refused."""
    history, older = EventCache(T0 + 7000), EventCache(0)
    history.add(event(late, T0 + 7000))
    for seq in (1, 2, 3, 4, 5):
        older.add(event(seq, T0 + 1000 * seq))
    older.add(event(6, T0 + 8000, epoch="f"))
    history.merge_older(older)
    for seq in (7, 8):
        history.add(event(seq, T0 + 2000 + 1000 * seq, epoch="f"))
    expected = [("e", 1), ("e", 2), ("e", 3), ("e", 4), ("e", 5), ("f", 6), ("f", 7), ("f", 8)]
    assert [(e.epoch, e.seq) for e in history.events_of(SUBJECT)] == expected
    assert history.complete_since(SUBJECT) == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from("ef")), max_size=20))
def test_each_epoch_is_in_one_piece(given: list[tuple[int, str]]) -> None:
    history = EventCache(0, per_subject=5)
    for n, (seq, epoch) in enumerate(given):
        history.add(event(seq, T0 + n, epoch=epoch))
    epochs = [of for of, _ in groupby(e.epoch for e in history.events_of(SUBJECT))]
    assert len(epochs) == len(set(epochs))


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9), st.sampled_from("ef")), max_size=40))
def test_no_subject_ever_has_a_gap_and_no_limit_is_exceeded(given: list[tuple[str, int, str]]) -> None:
    history = EventCache(0, per_subject=3, events=5)
    for n, (subject, seq, epoch) in enumerate(given):
        history.add(event(seq, T0 + n, subject=subject, epoch=epoch))
    kept_ = {subject: seqs(history, subject) for subject in "ab"}
    for cached in kept_.values():
        assert cached == list(range(cached[0], cached[0] + len(cached))) if cached else True
        assert len(cached) <= 3
    assert len(history) == sum(map(len, kept_.values())) <= 5
    assert history._size == sum(len(e.body) for s in "ab" for e in history.events_of(s))
