"""Takes in the readings of other replicas like own ones, with the times at which those asked for them."""

from __future__ import annotations

from collections.abc import Callable

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.reading.stream_plan import Base
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import ConsumersReading, Received
from nats_backpressure.runtime.reading_rounds import ReadingRounds
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.stream_poll import StreamPoll
from nats_backpressure.runtime.stream_readings import StreamReadings

MOST_RECEIVED = 8
"""Readings of one stream that wait to be evaluated; further ones are not used, and make nobody silent."""


class ReceivedReadings:
    """Postpones the own reading of a stream at once, and evaluates what was received soon, one after another."""

    def __init__(
        self,
        readings: StreamReadings,
        rounds: ReadingRounds,
        shared: SharedReading,
        replan: Callable[[StreamPoll], None],
    ) -> None:
        self._readings, self._rounds, self._shared, self._replan = readings, rounds, shared, replan

    def receive(self, poll: StreamPoll, received: Received) -> bool:
        """Another replica read a stream; returns whether that is taken in."""
        if (tasks := self._readings.tasks) is None or len(poll.received) >= MOST_RECEIVED:
            return False
        shown = received.shown
        if isinstance(shown, ConsumersReading):
            keys = _shown_keys(received.stream, shown)
            if not self._shared.receive(received, poll.plan.covered(keys)):
                return False
            poll.plan.receive(keys, received.asked_at, shown.took)
        elif not self._shared.receive(received, ()):
            return False
        poll.received.append(received)
        if poll.taking is None or poll.taking.done():
            poll.taking = tasks.create_task(self._take_all(poll), name=f"take in readings of {poll.name}")
        self._replan(poll)
        return True

    async def _take_all(self, poll: StreamPoll) -> None:
        while poll.received and self._readings.follows(poll):
            received = poll.received.popleft()
            if isinstance(received.shown, ConsumersReading):
                await self._take(poll, received, received.shown)
            elif isinstance(received.shown, Sample):
                base = poll.plan.base_of(received.base)
                self._readings.take_single(poll, received.shown, base, received.asked_at)
            self._rounds.tried(poll.name)
        self._replan(poll)

    async def _take(self, poll: StreamPoll, received: Received, reading: ConsumersReading) -> None:
        if not poll.plan.is_older(reading.look, received.sent_at):
            self._readings.take_look(poll, reading.look, received.sent_at)
        base: Base = poll.plan.base_of(received.base)
        if reading.partial:
            await self._readings.take_some(poll, reading, base, received.asked_at)
        else:
            await self._readings.take_list(poll, reading, base, received.asked_at)


def _shown_keys(stream: str, shown: ConsumersReading) -> frozenset[ConsumerKey] | None:
    """The consumers that a reading shows, or None for all there are."""
    if not shown.partial:
        return None
    missing = (ConsumerKey(stream, name) for name in shown.missing)
    return frozenset((*(sample.key for sample in shown.samples), *missing))
