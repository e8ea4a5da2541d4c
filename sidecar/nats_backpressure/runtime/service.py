"""The service: its loops, from the start to the last heartbeat.

One task group holds every loop: a crash in any of them ends the process, for its supervisor to restart it.
"""

from __future__ import annotations

import asyncio

import structlog

from nats_backpressure.core.subject.inputs import RecordLoaded
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.effect_runner import FIRST_RETRY, LAST_RETRY, EffectRunner
from nats_backpressure.runtime.event_comparison import ReadEvents
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.heartbeat import HeartbeatWriter
from nats_backpressure.runtime.own_resources import OwnResources
from nats_backpressure.runtime.policy_updates import PolicyUpdates
from nats_backpressure.runtime.poller import Poller
from nats_backpressure.runtime.ports import (
    Clock,
    PolicyStore,
    StateStore,
    Unavailable,
)
from nats_backpressure.runtime.reading_gap import ReadingGap
from nats_backpressure.runtime.reading_rounds import ROUND_WITHIN
from nats_backpressure.runtime.record_follower import RecordFollower
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.subject_registry import TICK, SubjectRegistry
from nats_backpressure.runtime.tasks import backoff, cancel_and_wait, sleep_until
from nats_backpressure.runtime.watched_summary import WatchedSummary

log = structlog.get_logger()

POLICIES_WITHIN = 5.0
"""Seconds for reading the policy bucket, before subjects are evaluated without it."""


class Service:
    """Everything between the ports, running. `registry` is what others may read of it; `known` is set once every stream
    was read or tried and the first states are stored, ROUND_WITHIN after the first list of streams at most."""

    def __init__(
        self,
        clock: Clock,
        store: StateStore,
        policy_store: PolicyStore,
        registry: SubjectRegistry,
        poller: Poller,
        effects: EffectRunner,
        updates: PolicyUpdates,
        resources: OwnResources,
        heartbeat: HeartbeatWriter,
        replicas: Replicas,
        failures: Failures,
        tick: float = TICK,
    ) -> None:
        self._clock, self._store, self._policy_store = clock, store, policy_store
        self.registry, self.poller, self.updates = registry, poller, updates
        self._effects, self._resources, self._heartbeat = effects, resources, heartbeat
        self._replicas, self._failures = replicas, failures
        self._summary, self._gap = WatchedSummary(registry, clock), ReadingGap(registry, clock)
        self._tick_every, self._started_at = tick, clock.now().mono
        self._loaded, self.known = asyncio.Event(), asyncio.Event()
        store.on_current = effects.retry_now

    async def run(self, stop: asyncio.Event, finish_within: float) -> None:
        """Observe until `stop`; then let writes and publishes end, for `finish_within` seconds at most."""
        async with asyncio.TaskGroup() as tasks:
            self._effects.start(self.registry, tasks)
            self._resources.start(tasks)
            loops = [
                tasks.create_task(self._become_known(), name="first round"),
                tasks.create_task(self._observe(), name="observe"),
                tasks.create_task(self._follow_records(), name="follow records"),
                tasks.create_task(self._resources.compare_events(), name="compare events"),
                tasks.create_task(self._policy_store.follow(self.updates.take_bucket), name="follow policies"),
                tasks.create_task(self.updates.put_in_force(), name="put policies in force"),
                tasks.create_task(self._update(), name="update policies"),
                tasks.create_task(self._tick(), name="tick"),
                tasks.create_task(self._beat(), name="heartbeat"),
                tasks.create_task(self._replicas.run(), name="presence"),
            ]
            await stop.wait()
            self._replicas.leave()
            await cancel_and_wait(loops)
            await self._effects.finish(finish_within)
            await self._effects.abandon()
            await self._heartbeat.leave()

    def announce(self) -> None:
        """A connection was made."""
        self._store.connected()
        self._replicas.announce()
        self._effects.retry_now()

    def take_other_events(self, older: bool, read: ReadEvents) -> None:
        """The events stream is another one than before, with events; whether it surely is an older copy."""
        self._resources.take_other_events(older, read)

    def heartbeat_age(self, now: Now) -> float:
        """Seconds since the newest heartbeat of any replica that proves something; since the start if there was
        none. May be called on another thread."""
        return max(0.0, now.mono - max(self._started_at, self._heartbeat.proved_at))

    def write_delay(self, now: Now) -> float:
        """Seconds since the oldest load or write of a state that is under way began; 0 if there is none. May be called
        on another thread."""
        return self._effects.delay(now.mono)

    async def _observe(self) -> None:
        await self._load()
        self._loaded.set()
        # Not before the policies are known: a decision under another policy would be published, and taken back.
        await sleep_until(self.updates.changed, self._clock, POLICIES_WITHIN)
        await self.poller.run()

    async def _load(self) -> None:
        """Start from what is stored: without it a restart would publish everything again."""
        for delay in backoff(self._clock, FIRST_RETRY, LAST_RETRY):
            try:
                await self._resources.ensure()
                with self._failures.stage("load states"):
                    stored = await self._store.load_all()
                break
            except Unavailable as error:
                log.debug("state.unavailable", error=str(error))
                await self._clock.sleep(delay)
        log.info("state.loaded", subjects=len(stored))
        slices = Slices(self._clock)
        for subject, entry in stored.items():
            if entry.record is not None:
                self.registry.get_or_create(subject)
                # Those with latches become members: nobody else may be there to notice that they count no more.
                latched = {key for key, _ in entry.record.latched}
                unwatched = self.registry.contexts.unwatched_members(entry.record) - latched
                loaded = RecordLoaded(entry.record, entry.revision, entry.newer, unwatched=unwatched)
                self.registry.feed(subject, loaded)
            await slices.pause()

    async def _follow_records(self) -> None:
        await self._loaded.wait()
        await self._store.follow(RecordFollower(self.registry, self.poller.take_stored).take)

    async def _become_known(self) -> None:
        await self.poller.complete.wait()
        took = self._clock.now().mono - (self.poller.rounds.began_at or 0.0)
        await self._effects.finish(max(0.0, ROUND_WITHIN - took))
        self.registry.observing = True
        self.known.set()

    async def _update(self) -> None:
        await self.poller.complete.wait()
        await self.updates.run()

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep(self._tick_every)
            self.poller.shared.pulse()
            self._failures.report()
            self._summary.report()
            self._gap.report()
            self.updates.expire()
            self._replicas.announce_change()
            slices = Slices(self._clock)
            for _ in self.registry.tick_in_slices():
                await slices.pause()

    async def _beat(self) -> None:
        await self.known.wait()
        await self._heartbeat.run()
