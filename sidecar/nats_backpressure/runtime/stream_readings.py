"""Readings of streams: asks for the consumers of a stream, and takes in the answer or its absence."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence

import structlog

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.reading.budget import Level
from nats_backpressure.core.reading.crossings import Base
from nats_backpressure.core.subject.membership import GONE_AFTER, NOTHING_READ, ReadState
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import WholeList
from nats_backpressure.runtime.intake import Intake
from nats_backpressure.runtime.observations import (
    ConsumerGone,
    ConsumersReading,
    StreamGone,
    Unavailable,
    answer_time,
)
from nats_backpressure.runtime.ports import Clock, Observer
from nats_backpressure.runtime.reading_rounds import ReadingRounds
from nats_backpressure.runtime.reading_schedule import ReadingSchedule
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.stream_poll import StreamPoll

log = structlog.get_logger()


MAX_SINGLE_READS = 64
"""Members missing from a list that are read one by one after it; the others wait for the next round."""
FIRST_RETRY, LAST_RETRY = 1.0, 30.0
"""Seconds until such a member that does not answer is tried again, growing."""


class StreamReadings:
    """Reads streams, whole or consumer by consumer, and takes in what was read: samples, absences and gone streams.

    After each reading the stream is planned again. A stream with nothing left to follow leaves the schedule."""

    def __init__(
        self,
        observer: Observer,
        clock: Clock,
        intake: Intake,
        schedule: ReadingSchedule,
        rounds: ReadingRounds,
        shared: SharedReading,
        *,
        count: Callable[[str], None],
        on_read: Callable[[float], None],
    ) -> None:
        self._observer, self._clock, self._intake, self._registry = observer, clock, intake, intake.registry
        self._schedule, self._rounds, self._shared = schedule, rounds, shared
        self._count, self._on_read = count, on_read
        self.tasks: asyncio.TaskGroup | None = None
        """Where members that lists leave out are read beside them; None before the poller runs."""

    async def list(self, poll: StreamPoll) -> None:
        try:
            await self.attempt(poll)
        finally:
            poll.listing_since = math.inf
        if poll.name in self._schedule.polls:
            self.wake_absent(poll)
            self._read_silent(poll)
            self._schedule.plan(poll)

    def wake_absent(self, poll: StreamPoll) -> None:
        """Have the stream listed soon if members are absent."""
        if poll.stream.absent:  # the next list shows whether these are gone
            poll.plan.wake(Level.QUIET, self._clock.mono())

    async def attempt(self, poll: StreamPoll) -> bool:
        """Read a stream, or learn that it cannot be read; False once there is nothing left in it to follow."""
        stream, name, done = poll.stream, poll.name, False
        try:
            await self.read(poll)
        except StreamGone:
            poll.plan.retry = GONE_AFTER / 2
            stream.shown_at = self._clock.mono()
            self._shared.end(name, Level.ALL, failed=False)
            self._intake.remove_uncounted_members(stream, ReadState({}, complete=True))
            done = not self._registry.members.of_stream(name)
        except Unavailable as error:
            self._failed(poll, error, Level.ALL)
            self._intake.remove_uncounted_members(stream, NOTHING_READ)
        else:
            done = not stream.watched and not self._registry.members.of_stream(name)
        if done:
            log.info("stream.gone", stream=name)
            del self._schedule.polls[name], self._registry.streams[name]
            self._shared.forget(name)
        self._rounds.tried(name)
        return not done

    def _failed(self, poll: StreamPoll, error: Unavailable, highest: Level) -> None:
        self._count("sweep_unavailable")
        log.debug("consumers.unavailable", stream=poll.name, error=str(error))
        poll.plan.fail()
        self._shared.end(poll.name, highest, failed=True)

    async def read(self, poll: StreamPoll) -> None:
        """One list of a stream, and all that follows from it. Raises StreamGone and Unavailable."""
        base, asked_at = poll.plan.crossings.base, self._clock.mono()
        reading = await self._observer.consumers(poll.name)
        self._finish(poll, reading)
        if asked_at >= poll.whole_at:  # otherwise another replica has shown newer ones meanwhile
            poll.whole_at = asked_at
            self.take_look(poll, reading.look, answer_time(asked_at, self._clock.mono(), reading.took))
            await self.take_list(poll, reading, base, asked_at)

    async def take_list(self, poll: StreamPoll, reading: ConsumersReading, base: Base, asked_at: float) -> None:
        """Take in a list of a stream: what it shows, and what it lacks."""
        members = self._registry.members.of_stream(poll.name)
        poll.plan.listed = len(reading.samples) + len(reading.unread) + reading.unnamed
        poll.plan.listed_seconds = reading.spent
        under = await self._take_samples(poll, reading, base, asked_at, members)
        self._intake.count_left_out(poll.stream, reading.samples)
        is_whole = reading.whole and not reading.unread
        names = frozenset(sample.key.consumer for sample in reading.samples) if is_whole else frozenset[str]()
        poll.stream.seen, poll.stream.whole = True, WholeList(reading.look, names) if is_whole else None
        shown = ReadState(under, reading.unread, reading.whole, asked_at)
        poll.silent = self._intake.remove_uncounted_members(poll.stream, shown).unread
        self._forget_uncounted(poll)

    async def read_some(self, poll: StreamPoll, keys: Sequence[ConsumerKey]) -> None:
        """Read these consumers one by one."""
        base, asked_at = poll.plan.crossings.base, self._clock.mono()
        try:
            reading = await self._observer.consumers(poll.name, [key.consumer for key in keys])
        except StreamGone:
            poll.plan.wake(Level.HOT, asked_at)  # a list decides
        except Unavailable as error:
            self._failed(poll, error, Level.QUIET)
        else:
            self._finish(poll, reading)
            self.take_look(poll, reading.look, answer_time(asked_at, self._clock.mono(), reading.took))
            await self.take_some(poll, reading, base, asked_at)
            self._read_silent(poll)
        finally:
            poll.reading = False
        self._rounds.tried(poll.name)
        self._schedule.plan(poll)

    async def take_some(self, poll: StreamPoll, reading: ConsumersReading, base: Base, asked_at: float) -> None:
        """Take in a reading of some consumers."""
        if reading.samples:
            poll.plan.single_seconds = reading.spent / (len(reading.samples) + 1)
        before = {sample.key: poll.stream.under.get(sample.key, ()) for sample in reading.samples}
        under = await self._take_samples(poll, reading, base, asked_at, before)
        moved = {key: subjects for key, subjects in under.items() if set(subjects) != set(before.get(key, ()))}
        if moved:
            self._intake.remove_uncounted_members(poll.stream, ReadState(moved))
            self._forget_uncounted(poll)
        missing = [ConsumerKey(poll.name, name) for name in reading.missing]
        for key in missing:  # until it is shown again
            poll.plan.crossings.miss(key)
        poll.silent |= frozenset(missing)

    def _finish(self, poll: StreamPoll, reading: ConsumersReading) -> None:
        """An own reading was answered."""
        self._on_read(reading.spent)
        self._shared.end(poll.name, Level.QUIET if reading.partial else Level.ALL, failed=False)
        if reading.samples or not reading.partial:
            poll.plan.finish(reading.took, self._clock.random(), trip=reading.trip, partial=reading.partial)

    def take_look(self, poll: StreamPoll, look: StreamLook, at: float) -> None:
        """Take in the look that came with a reading; its samples come next."""
        poll.stream.look = look
        poll.plan.add_look(look, at)
        self._rounds.was_read(at)

    async def _take_samples(
        self,
        poll: StreamPoll,
        reading: ConsumersReading,
        base: Base,
        asked_at: float,
        members: Mapping[ConsumerKey, Sequence[str]],
    ) -> dict[ConsumerKey, tuple[str, ...]]:
        """Take in the samples of a reading; returns the subjects that each consumer counts under."""
        stream, plan = poll.stream, poll.plan
        stream.shown_at = self._clock.mono()
        under: dict[ConsumerKey, tuple[str, ...]] = {}
        slices = Slices(self._clock)
        poll.evaluating += 1
        try:
            for sample in reading.samples:
                if slices.over:
                    await slices.pause()
                newest = plan.crossings.consumers.get(sample.key)
                if newest is not None and newest.is_newer(sample, asked_at):  # it was read by itself meanwhile
                    under[sample.key] = stream.under.get(sample.key, ())
                    continue
                under[sample.key] = self._intake.sample(stream, sample, members.get(sample.key, ()))
            self._intake.flush()
            for sample in reading.samples:
                if slices.over:
                    await slices.pause()
                self._plan_sample(poll, sample, base, asked_at)
        finally:
            poll.evaluating -= 1
        return under

    def _plan_sample(self, poll: StreamPoll, sample: Sample, base: Base, asked_at: float) -> None:
        subjects, newest = poll.stream.under.get(sample.key), poll.plan.crossings.consumers.get(sample.key)
        if subjects and (newest is None or not newest.is_newer(sample, asked_at)):
            poll.plan.crossings.add_sample(sample, base, self._registry.headroom(sample, subjects), asked_at)

    def _forget_uncounted(self, poll: StreamPoll) -> None:
        for key in (poll.plan.crossings.consumers.keys() | poll.plan.crossings.missing) - poll.stream.under.keys():
            poll.plan.crossings.forget(key)

    def _read_silent(self, poll: StreamPoll) -> None:
        """Read one by one, beside the list, the members it left out: a node is down, or more came meanwhile."""
        if poll.plan.retry or self.tasks is None or (poll.singly is not None and not poll.singly.done()):
            return
        poll.tries = {key: one for key, one in poll.tries.items() if key in poll.silent}
        now = self._clock.mono()
        ready = sorted((poll.tries.get(key, (-math.inf, 0.0))[0], key) for key in poll.silent)
        if chosen := [key for at, key in ready if at <= now][:MAX_SINGLE_READS]:
            poll.singly = self.tasks.create_task(self.read_singly(poll, chosen), name=f"read singly {poll.name}")

    async def read_singly(self, poll: StreamPoll, chosen: Sequence[ConsumerKey]) -> None:
        """Ask about each of them; what a list that came meanwhile shows is newer."""
        for key in chosen:
            base, asked_at = poll.plan.crossings.base, self._clock.mono()
            delay = poll.tries.get(key, (0.0, FIRST_RETRY))[1]
            poll.tries[key] = asked_at + delay, FIRST_RETRY
            try:
                sample = await self._observer.consumer(key)
            except ConsumerGone:
                if key in poll.silent and key in self._registry.members.of_stream(poll.name):
                    self._intake.remove_gone_members(poll.stream, [key])
            except (Unavailable, StreamGone):
                self._count("sweep_unavailable")
                poll.tries[key] = self._clock.mono() + delay, min(2 * delay, LAST_RETRY)
            else:
                self.take_single(poll, sample, base, asked_at)
        self._forget_uncounted(poll)
        self._schedule.plan(poll)

    def take_single(self, poll: StreamPoll, sample: Sample, base: Base, asked_at: float) -> None:
        """Take in a consumer that was read by itself because lists left it out."""
        if sample.key in poll.silent:
            members_of = self._registry.members.of_stream(poll.name).get(sample.key, ())
            under = self._intake.sample(poll.stream, sample, members_of, early=True)
            self._intake.remove_uncounted_members(poll.stream, ReadState({sample.key: under}))
            self._plan_sample(poll, sample, base, asked_at)
