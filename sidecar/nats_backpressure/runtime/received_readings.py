"""Takes in the readings of other replicas like own ones, with the times at which those asked for them."""

from __future__ import annotations

from collections import deque

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.reading.crossings import Base
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import ConsumersReading, Received, answer_time
from nats_backpressure.runtime.reading_rounds import ReadingRounds
from nats_backpressure.runtime.reading_schedule import ReadingSchedule
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.stream_poll import StreamPoll
from nats_backpressure.runtime.stream_readings import StreamReadings

MOST_RECEIVED = 8
"""Readings of one stream that wait to be evaluated. One more drops the oldest: who is slower than the reader uses what
is newest, and does not read as well."""


class ReceivedReadings:
    """Postpones the own reading of a stream at once, and evaluates what was received soon, one after another."""

    def __init__(
        self,
        readings: StreamReadings,
        rounds: ReadingRounds,
        shared: SharedReading,
        schedule: ReadingSchedule,
    ) -> None:
        self._readings, self._rounds, self._shared, self._schedule = readings, rounds, shared, schedule

    def receive(self, poll: StreamPoll, received: Received) -> bool:
        """Another replica read a stream; returns whether that is taken in."""
        tasks, shown = self._readings.tasks, received.shown
        if tasks is None:
            return False
        keys = _shown_keys(received)
        if keys is None and received.asked_at <= poll.whole_at:
            return False
        is_reading = isinstance(shown, ConsumersReading)
        if not self._shared.receive(received, poll.plan.covered(keys) if is_reading else ()):
            return False
        if isinstance(shown, ConsumersReading):
            poll.plan.receive(keys, received.asked_at, shown.took)
        if keys is None:
            poll.whole_at = received.asked_at
        _add(poll.received, received, keys)
        if poll.taking is None or poll.taking.done():
            poll.taking = tasks.create_task(self._take_all(poll), name=f"take in readings of {poll.name}")
        self._schedule.plan(poll)
        return True

    async def _take_all(self, poll: StreamPoll) -> None:
        while poll.received and self._schedule.follows(poll):
            received = poll.received.popleft()
            if isinstance(received.shown, ConsumersReading):
                await self._take(poll, received, received.shown)
            elif isinstance(received.shown, Sample):
                base = poll.plan.crossings.base_of(received.base)
                self._readings.take_single(poll, received.shown, base, received.asked_at)
            self._rounds.tried(poll.name)
        self._schedule.plan(poll)

    async def _take(self, poll: StreamPoll, received: Received, reading: ConsumersReading) -> None:
        at = answer_time(received.asked_at, received.sent_at, reading.took)
        if not poll.plan.crossings.is_older(reading.look, at):
            self._readings.take_look(poll, reading.look, at)
        base: Base = poll.plan.crossings.base_of(received.base)
        if reading.partial:
            await self._readings.take_some(poll, reading, base, received.asked_at)
        else:
            await self._readings.take_list(poll, reading, base, received.asked_at)
            self._readings.wake_absent(poll)


def _shown_keys(received: Received) -> frozenset[ConsumerKey] | None:
    """The consumers that a reading shows, or None for all there are."""
    shown = received.shown
    if isinstance(shown, ConsumersReading):
        if not shown.partial:
            return None
        missing = (ConsumerKey(received.stream, name) for name in shown.missing)
        return frozenset((*(sample.key for sample in shown.samples), *missing))
    return frozenset((shown.key,) if isinstance(shown, Sample) else ())


def _add(waiting: deque[Received], received: Received, keys: frozenset[ConsumerKey] | None) -> None:
    """Add a reading, and drop what it replaces: who shows all of its consumers, and was asked for before. One of a
    consumer that was read alone stays: lists leave that out."""
    still_needed = []
    for one in waiting:
        older = _shown_keys(one)
        shows_all = keys is None or (older is not None and older <= keys)
        if isinstance(one.shown, Sample) or not shows_all or one.asked_at > received.asked_at:
            still_needed.append(one)
    waiting.clear()
    waiting.extend((*still_needed, received)[-MOST_RECEIVED:])
