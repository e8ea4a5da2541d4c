"""How long a message has been in its stream, computed from our own looks."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.signals.message_age import LOOKS, MessageAges


def look(last_seq: int, created: str = "then") -> StreamLook:
    return StreamLook("S", created, 1, last_seq, last_seq)


def test_a_message_is_as_old_as_the_first_look_that_held_it() -> None:
    ages = MessageAges()
    for at, last_seq in [(0.0, 10), (1.0, 10), (2.0, 20), (3.0, 20), (4.0, 30)]:
        ages.add_look(look(last_seq), at)
    assert [ages.age_of(seq, 10.0) for seq in (10, 11, 20, 21, 30, 31)] == [None, 8.0, 8.0, 6.0, 6.0, None]


@pytest.mark.parametrize(
    ("other", "twelfth"), [(look(5), 6.0), (look(40, "again"), None)], ids=["fewer messages", "created again"]
)
def test_another_stream_of_that_name_starts_from_nothing(other: StreamLook, twelfth: float | None) -> None:
    ages = MessageAges()
    ages.add_look(look(10), 0.0)
    ages.add_look(look(20), 1.0)
    ages.add_look(other, 2.0)
    assert ages.age_of(15, 9.0) is None
    ages.add_look(StreamLook("S", other.created, 1, 50, 50), 3.0)
    assert (ages.age_of(12, 9.0), ages.age_of(45, 9.0)) == (twelfth, 6.0)


def test_an_old_age_is_coarser_but_known() -> None:
    ages = MessageAges()
    for n in range(10_000):
        ages.add_look(look(10 * n), float(n))
    assert len(ages._looks) <= LOOKS
    seconds = [ages.age_of(seq, 10_000.0) for seq in (1, 50_000, 99_900)]
    assert None not in seconds and seconds[2] == 10.0


@given(st.lists(st.tuples(st.floats(0.1, 60.0), st.integers(0, 100)), min_size=2, max_size=600), st.data())
def test_an_age_is_never_more_than_the_truth_and_memory_is_bounded(
    steps: list[tuple[float, int]], data: st.DataObject
) -> None:
    """Message number n was stored just ahead of the look that shows n for the first time."""
    ages, at, last = MessageAges(), 0.0, 0
    seen: list[tuple[int, float]] = []
    for after, more in steps:
        at, last = at + after, last + more
        seen.append((last, at))
        ages.add_look(look(last), at)
    assert len(ages._looks) <= LOOKS
    seq = data.draw(st.integers(0, last + 1))
    age = ages.age_of(seq, at)
    if seq <= steps[0][1] or seq > last:
        assert age is None
    else:
        stored = seen[bisect_left(seen, seq, key=lambda entry: entry[0])][1]
        assert age is not None and 0 <= age <= at - stored
