"""Policies that change while the service runs: put in force, and reported where they are refused."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence

import structlog

from nats_backpressure.config.settings import BadSettings, Settings
from nats_backpressure.core.subject.inputs import PolicyRefused
from nats_backpressure.policy.precedence import Sources
from nats_backpressure.policy.refusals import RefusedPolicy
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.policy.snapshot import PolicySnapshot
from nats_backpressure.policy.validation import FieldProblem, shorten
from nats_backpressure.runtime.effect_attempt import DROPPED
from nats_backpressure.runtime.effect_runner import FIRST_RETRY, LAST_RETRY
from nats_backpressure.runtime.ports import Clock, EventPublisher, ServiceCounts, Unavailable, Unpublishable
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import backoff, sleep_until

log = structlog.get_logger()

THE_FILE = "_file"
"""What `policy_rejected` calls the settings file, which has no key in the bucket."""
MOST_UNREPORTED = 10_000
"""Refused policies that wait to be reported; the oldest goes. As many as the bucket may have keys."""
TAKEN = ("policies", "policy_guard")
"""The settings that a file which is read again puts in force; all others need a restart."""


class PolicyUpdates:
    """Takes policies from the settings file and the bucket; `changed` is set until they apply to every subject."""

    def __init__(
        self,
        registry: SubjectRegistry,
        publisher: EventPublisher,
        clock: Clock,
        counts: ServiceCounts,
        on_change: Callable[[Sources], None],
    ) -> None:
        self._registry, self._policies, self._publisher = registry, registry.policies, publisher
        self._clock, self._counts, self._on_change = clock, counts, on_change
        self._unreported: dict[str, RefusedPolicy] = {}
        """Refused policies that are still to be reported, the newest of each subject."""
        self.changed = asyncio.Event()
        self.file_is_good, self.file_taken_at = True, clock.now().wall
        """Whether the settings file was good when it was last read; and when the policies in force were read from it,
        in Unix seconds."""
        self._settings: Settings | None = None
        self._snapshot: PolicySnapshot | None = None
        """The newest of those that are still to be put in force."""
        self._given = asyncio.Event()

    def reload(self, read: Callable[[], Settings]) -> None:
        """Read the settings file again: its policies come into force soon, other settings need a restart. A bad file
        changes nothing, and is reported."""
        try:
            settings = read()
        except BadSettings as bad:
            self.file_is_good = False
            self._counts.reloaded("rejected")
            log.error("config.rejected", errors=bad.lines, hint="the last good policies stay in force")
            self.refuse_file(bad.problems)
            return
        self.file_is_good, self._settings = True, settings
        self._given.set()

    def take_bucket(self, snapshot: PolicySnapshot) -> None:
        """The policy bucket holds this now: it comes into force soon."""
        self._snapshot = snapshot
        self._given.set()

    async def put_in_force(self) -> None:
        """Put what is given in force, one after the other, until cancelled."""
        while True:
            await self._given.wait()
            self._given.clear()
            settings, self._settings = self._settings, None
            if settings is not None:
                await self._take(self._policies.file_steps(settings.policies, settings.policy_guard))
                self._log_reloaded(settings)
            snapshot, self._snapshot = self._snapshot, None
            if snapshot is not None:
                await self._take(self._policies.bucket_steps(snapshot))

    async def _take(self, steps: Iterator[RefusedPolicy | None]) -> None:
        refusals: list[RefusedPolicy] = []
        slices = Slices(self._clock)
        for refusal in steps:
            refusals += [refusal] if refusal is not None else []
            await slices.pause()
        self._refuse(refusals)
        self._on_change(self._policies.sources)
        self.changed.set()

    def _log_reloaded(self, settings: Settings) -> None:
        self.file_taken_at = self._clock.now().wall
        self._counts.reloaded("ok")
        before = self._registry.settings
        names = (name for name in Settings.__struct_fields__ if name not in TAKEN)
        waiting = [name for name in names if getattr(settings, name) != getattr(before, name)]
        log.info("config.reloaded", policies=len(settings.policies), needs_a_restart=waiting)

    def refuse_file(self, problems: Sequence[FieldProblem]) -> None:
        """A settings file that was read again cannot be used: the last good policies stay in force."""
        errors = tuple((problem.path, problem.message) for problem in problems)
        mark = hashlib.sha256(repr(errors).encode()).hexdigest()[:16]
        self._refuse([RefusedPolicy(THE_FILE, Rejection(mark, errors), stays=True)])
        self.changed.set()

    def expire(self) -> None:
        """End the overrides whose time is over."""
        if self._policies.expire(self._clock.now().wall):
            self.changed.set()

    async def run(self) -> None:
        """After every change: evaluate all subjects again, and report the policies that were refused."""
        delays = backoff(self._clock, FIRST_RETRY, LAST_RETRY)
        while True:
            if self._unreported:  # retried without evaluating: no policy changed by that
                await sleep_until(self.changed, self._clock, next(delays))
            else:
                delays = backoff(self._clock, FIRST_RETRY, LAST_RETRY)
                await self.changed.wait()
            if self.changed.is_set():
                self.changed.clear()
                slices = Slices(self._clock)
                for subject in tuple(self._registry.subjects):
                    self._registry.apply_policies(subject)
                    await slices.pause()
            await self._report()

    def _refuse(self, refusals: Sequence[RefusedPolicy]) -> None:
        for refusal in refusals:
            if refusal.in_force:
                log.warning("policy.fields_ignored", subject=refusal.subject, fields=refusal.rejection.errors)
            else:
                self._counts.dropped("policy_rejected")
                in_force = "the last good one, until a restart" if refusal.stays else "none"
                errors = refusal.rejection.errors
                log.warning("policy.rejected", subject=refusal.subject, errors=errors, in_force=in_force)
            self._unreported[refusal.subject] = refusal
            if len(self._unreported) > MOST_UNREPORTED:
                del self._unreported[next(iter(self._unreported))]

    async def _report(self) -> None:
        """Report each that can be; one that cannot delays no other. A watched subject's own state numbers its events;
        under any other key the number follows what was published there."""
        for subject, refusal in tuple(self._unreported.items()):
            try:
                if subject in self._registry.subjects:
                    self._registry.feed(subject, PolicyRefused(refusal.rejection))
                else:
                    await self._publisher.publish_rejection(subject, refusal.rejection, self._clock.now().wall)
            except Unavailable as error:
                log.debug("policy.rejection_unpublished", subject=shorten(subject), error=str(error))
                continue
            except Unpublishable as error:
                self._counts.dropped("event_unpublishable")
                log.error(
                    "event.dropped", type="policy_rejected", subject=shorten(subject), error=str(error), hint=DROPPED
                )
            if self._unreported.get(subject) is refusal:
                del self._unreported[subject]
