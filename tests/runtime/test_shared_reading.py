"""Which readings of others are of use: of streams that are followed, and not read by this replica before the sender."""

from __future__ import annotations

import pytest

from nats_backpressure.core.reading.budget import Level
from nats_backpressure.core.reading.sharing import Position
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording.broadcast_receiver import Received
from nats_backpressure.runtime.shared_reading import SharedReading
from tests.fakes.clock import FakeClock

LAST, FIRST = (Position(writes=True, settled=True, share=share) for share in (1.0, -1.0))


class Machine:
    """A clock of a machine that can stand still."""

    def __init__(self) -> None:
        self.mono, self.wall = 1000.0, 5000.0

    def now(self) -> Now:
        return Now(self.mono, self.wall)

    def run(self, seconds: float) -> None:
        self.mono, self.wall = self.mono + seconds, self.wall + seconds


def test_after_the_whole_machine_stood_still_nothing_is_believed_before_a_round_trip() -> None:
    machine, answered_at = Machine(), 1000.5
    shared = SharedReading(machine, "me", 0.6, listening_time=lambda since: max(0.0, answered_at - since))
    machine.run(0.9)
    assert shared.believes()
    machine.wall += 8.0  # the monotonic clock does not count it
    machine.run(0.1)
    assert not shared.believes()
    answered_at = 1001.2
    machine.run(0.3)
    assert shared.believes()


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


@pytest.mark.parametrize(("last_of_another_stream", "silent"), [(0.0, True), (0.3, True), (0.65, False)])
def test_who_was_silent_on_one_stream_is_replaced_on_all_once_nothing_of_it_is_received_for_a_silence(
    last_of_another_stream: float, silent: bool
) -> None:
    shared, replaced = SharedReading(clock := FakeClock(), "me", 0.6), list[str]()
    shared.on_silent = replaced.append
    receive(shared, clock, "S")
    clock.advance(last_of_another_stream)
    receive(shared, clock, "T")
    clock.advance(0.65 - last_of_another_stream)
    shared.start("S", Level.HOT, Level.ALL, 0.1)
    if last_of_another_stream == 0.65:
        receive(shared, clock, "T")
    clock.advance(last_of_another_stream)
    shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert replaced == (["other"] if silent else [])


@pytest.mark.parametrize("after_another", [False, True])
def test_one_that_stands_behind_is_not_silent_because_it_is_replaced(after_another: bool) -> None:
    shared, replaced = SharedReading(clock := FakeClock(), "me", 0.6), list[str]()
    shared.on_silent = replaced.append
    if after_another:
        receive(shared, clock, "S", FIRST)
    receive(shared, clock, "S", Position(writes=True, settled=False, share=1.0))
    clock.advance(0.7)
    shared.start("S", Level.HOT, Level.ALL, 0.1)
    shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert replaced == []


def test_one_that_did_not_listen_itself_takes_nobody_for_silent() -> None:
    listening = 0.0
    shared = SharedReading(clock := FakeClock(), "me", 0.6, listening_time=lambda since: listening)
    replaced = list[str]()
    shared.on_silent = replaced.append
    receive(shared, clock, "S")
    clock.advance(0.7)
    shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert not shared.is_settled("S"), "it is not the next in line"
    clock.advance(0.7)
    shared.start("S", Level.HOT, Level.ALL, 0.1)
    assert replaced == []


def receive(shared: SharedReading, clock: FakeClock, stream: str, sender: Position = FIRST) -> None:
    now = clock.now().mono
    shared.receive(Received(stream, "other", sender, now, now, None, None), tuple(Level))  # type: ignore[arg-type]
