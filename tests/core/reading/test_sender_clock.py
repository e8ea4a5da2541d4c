"""Times of another process on one's own clock: a message that comes late is as old as it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.reading.sender_clock import REMEMBERED, SenderClock


def test_a_late_message_is_as_old_as_it_is() -> None:
    clock = SenderClock()
    clock.add(sent=5.0, received=1005.001)
    clock.add(sent=6.0, received=1010.0)
    assert round(6.0 + clock.shift, 3) == 1006.001


def test_a_first_message_that_was_late_is_corrected_by_the_next() -> None:
    clock = SenderClock()
    clock.add(sent=5.0, received=1015.0)
    clock.add(sent=15.0, received=1015.001)
    assert round(15.0 + clock.shift, 3) == 1015.001


def test_a_clock_that_stood_still_is_believed_again_after_a_while() -> None:
    clock = SenderClock()
    clock.add(sent=5.0, received=1005.0)
    for n in range(round(2 * REMEMBERED) + 2):
        clock.add(sent=10.0 + n, received=1020.0 + n)
    assert clock.shift == 1010.0


def test_after_a_long_silence_it_begins_again() -> None:
    clock = SenderClock()
    clock.add(sent=5.0, received=1005.0)
    clock.add(sent=6.0, received=1006.0)
    clock.add(sent=7206.4, received=8206.5)  # the clocks have drifted by 0.1 s
    assert (clock.messages, clock.first_at) == (1, 8206.5)
    assert round(clock.shift, 3) == 1000.1


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), min_size=1), st.floats(-1e6, 1e6))
def test_no_message_seems_older_than_it_is_nor_younger_than_the_fastest(
    messages: list[tuple[float, float]], difference: float
) -> None:
    """Each: seconds after the one before, and on the way."""
    clock, now, received = SenderClock(), 0.0, 0.0
    delays: list[tuple[float, float]] = []
    for after, delay in messages:
        now += after
        received = max(received, now + delay)
        delays.append((received, received - now))
        clock.add(now, received + difference)
        error = clock.shift - difference
        assert min(one for _, one in delays) - 1e-6 <= error
        assert error <= min(one for at, one in delays if at > received - REMEMBERED) + 1e-6
