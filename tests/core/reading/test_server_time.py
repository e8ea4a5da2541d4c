"""The server's time of day from its replies: as exact as the newest quick reply, whatever the machine's clock shows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.reading.server_time import ServerTime

WALL, OWN = 1_800_000_000.0, 5.0
"""The server's time when the monotonic clock is at 0; and the time of day on a machine whose clock is wrong."""
SECONDS = st.floats(0, 10)
ROUNDING = 1e-6


def test_without_a_reply_it_is_the_machines() -> None:
    assert ServerTime().wall(1.0, OWN) == OWN


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS), min_size=1))
def test_it_is_as_exact_as_the_quickest_reply(replies: list[tuple[float, float, float]]) -> None:
    """Each takes some time to the server and some time back, with some time before the next one."""
    server, at, quickest = ServerTime(), 0.0, 100.0
    for there, back, later in replies:
        server.add(WALL + at + there, at, at + there + back)
        quickest = min(quickest, there + back)
        at += there + back + later
        assert abs(server.wall(at, OWN) - (WALL + at)) <= quickest + ROUNDING


@given(st.lists(st.tuples(SECONDS, SECONDS, st.floats(-1e6, 1e6)), min_size=1))
def test_a_clock_of_the_server_that_jumps_is_followed_at_once(replies: list[tuple[float, float, float]]) -> None:
    server, at, wall = ServerTime(), 0.0, WALL
    for there, back, jump in replies:
        wall += jump
        server.add(wall + at + there, at, at + there + back)
        at += there + back
        assert abs(server.wall(at, OWN) - (wall + at)) <= there + back + ROUNDING
