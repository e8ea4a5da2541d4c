"""Performs the effects that `step` returns, retrying until the outcome is certain, which it feeds back as an input."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import structlog

from nats_backpressure.core.subject.inputs import (
    Effect,
    LoadRecord,
    PublishEvent,
    RemoveKey,
    ReportDifference,
    WriteFailing,
    WriteRecord,
)
from nats_backpressure.runtime.effect_attempt import EffectAttempt, shown_status
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.ports import Clock, ServiceCounts, Unavailable
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import Once, backoff, cancel_and_wait, within

log = structlog.get_logger()

AT_ONCE = 48
"""Loads performed at a time, and as many writes and publishes; the others wait their turn. Fewer than a JetStreamApi
has under way, so that the heartbeat finds a place beside writes that hang."""
ARRIVES_WITHIN = 2.0
"""Seconds, from its turn, within which an effect ends where this replica can write; a reply that is slow, or gets lost
once, is no reason that another one writes."""
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds between two tries, doubling, with jitter."""

VERBS: Final[dict[type[Effect], str]] = {
    LoadRecord: "load",
    WriteRecord: "write",
    PublishEvent: "publish",
    RemoveKey: "forget",
}
"""What an effect is called in logs and metrics."""


class EffectRunner:
    """Performs the effects of every step as tasks of their own, and feeds their outcomes to the registry."""

    def __init__(
        self,
        attempt: EffectAttempt,
        clock: Clock,
        counts: ServiceCounts,
        failures: Failures | None = None,
    ) -> None:
        self._attempt, self._clock, self._counts = attempt, clock, counts
        self._failures = failures or Failures(clock)
        # One store or stream that hangs does not delay the other.
        loads, writes, publishes = (asyncio.Semaphore(AT_ONCE) for _ in range(3))
        self._turns: dict[type[Effect], asyncio.Semaphore] = {
            LoadRecord: loads,
            WriteRecord: writes,
            RemoveKey: writes,
            PublishEvent: publishes,
        }
        self._registry: SubjectRegistry
        self._tasks: asyncio.TaskGroup
        self._retry_due = asyncio.Event()
        """Replaced by another one once it is set."""
        self._running: set[asyncio.Task[None]] = set()
        self._abandoned = False
        self._tried_since: OrderedDict[asyncio.Task[Any], float] = OrderedDict()
        """Of those, the ones that had their turn, with the monotonic time since when; the oldest first."""
        self._differing = Once()
        """Marks of other policies that differ from ours, and subjects that are judged otherwise under our own."""

    @property
    def writes(self) -> bool:
        """Whether what is loaded and written to the state bucket arrives: false while any of it has failed, or hung,
        for ARRIVES_WITHIN. An event that cannot be published is published by any other replica, and where none can
        publish it, one of them is to write all the same."""
        oldest = next(iter(self._tried_since.values()), math.inf)
        return self._clock.now().mono - oldest < ARRIVES_WITHIN

    def delay(self, now: float) -> float:
        """Seconds since the oldest of these had its first turn, at a monotonic time; 0 where there is none. May be
        called on another thread."""
        return max(0.0, now - min(tuple(self._tried_since.values()), default=now))

    def start(self, registry: SubjectRegistry, tasks: asyncio.TaskGroup) -> None:
        """Feed outcomes to `registry`, and run as tasks of `tasks`; to be called before `perform`."""
        self._registry = self._attempt.registry = registry
        self._tasks = tasks

    def perform(self, effects: Iterable[Effect]) -> None:
        """Begin each of them; a subject never has more than one write and one publish under way."""
        for effect in effects:
            if isinstance(effect, ReportDifference):
                self._report_difference(effect)
                continue
            if self._abandoned:
                return
            task = self._tasks.create_task(self._retry(effect), name=f"{VERBS[type(effect)]} {effect.subject}")
            self._running.add(task)
            task.add_done_callback(self._discard)

    def _discard(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._tried_since.pop(task, None)

    def _report_difference(self, effect: ReportDifference) -> None:
        self._counts.dropped("judged_otherwise")
        if effect.stored.policy_mark == self._registry.policies.mark:
            if self._differing.first(effect.subject):
                log.info(
                    "replicas.differ",
                    subject=effect.subject,
                    stored=shown_status(effect.stored),
                    ours=shown_status(effect.ours),
                    hint="normal for a minute after a start; what the reader of its streams has stored holds",
                )
        elif self._differing.first(effect.stored.policy_mark):
            log.warning(
                "policies.differ",
                subject=effect.subject,
                stored=shown_status(effect.stored),
                ours=shown_status(effect.ours),
                policies_of_stored=effect.stored.policy_mark,
                hint="replicas have different settings files; what is stored holds until those that wrote it are gone",
            )

    async def finish(self, seconds: float) -> None:
        """Let running effects end, for `seconds` at most."""
        if pending := tuple(self._running):
            with suppress(TimeoutError):
                await within(self._clock, seconds, asyncio.wait(pending))

    async def abandon(self) -> None:
        """Cancel running effects, and begin no other: each is stored as unfinished or was not started; the next process
        continues with it."""
        self._abandoned = True
        await cancel_and_wait(self._running)

    async def _retry(self, effect: Effect) -> None:
        """Try until the outcome is certain. NATS may be away for long: that is fed to the subject."""
        act, began = VERBS[type(effect)], self._clock.now().mono
        for delay in backoff(self._clock, FIRST_RETRY, LAST_RETRY):
            try:
                async with self._turns[type(effect)]:
                    if not isinstance(effect, PublishEvent):
                        self._note_turn()
                    await self._attempt(effect)
                self._failures.works(act, effect.subject)
                return
            except Unavailable as error:
                self._counts.dropped(f"{VERBS[type(effect)]}_retry")
                self._failures.failed(act, error, effect.subject, began)
                log.debug("effect.failed", act=act, subject=effect.subject, error=str(error))
            if isinstance(effect, WriteRecord):
                self._registry.feed(effect.subject, WriteFailing(effect.writing.nonce))
            await self._clock.wait(self._retry_due, delay)

    def retry_now(self) -> None:
        """A connection was made: what failed is tried again at once."""
        before, self._retry_due = self._retry_due, asyncio.Event()
        before.set()

    def _note_turn(self) -> None:
        """The task that runs now has a turn; from its first one on, the time counts until it ends."""
        if (task := asyncio.current_task()) is not None:
            self._tried_since.setdefault(task, self._clock.now().mono)
