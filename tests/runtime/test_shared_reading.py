"""Which readings of others are of use: of streams that are followed, and not read by this replica before the sender."""

from __future__ import annotations

from nats_backpressure.core.reading.budget import Level
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.runtime.shared_reading import SharedReading
from tests.fakes.clock import FakeClock

LAST, FIRST = (Position(writes=True, settled=True, share=share) for share in (1.0, -1.0))


def test_a_reading_is_wanted_unless_the_own_one_counts_more() -> None:
    shared = SharedReading(clock := FakeClock(), "me", 0.6)
    assert not shared.wants("S", FIRST), "it is not followed"
    assert not shared._streams, "and nothing is remembered of it"
    now = clock.now().mono
    shared.starts_at("S", Level.ALL, now, 1.0, 0.01)
    assert shared.wants("S", LAST), "it is not read yet"
    shared.start("S", Level.HOT, Level.ALL, 1.0)
    clock.advance(70)  # it is settled
    assert shared.wants("S", FIRST) and not shared.wants("S", LAST)
    shared.end("S", Level.ALL, failed=True)
    assert shared.wants("S", LAST), "its own readings fail"
