"""LocalAdmission: `admit`, decided from the client's copy of the states, without I/O."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from nats_backpressure.client.admission import Admission
from nats_backpressure.client.cached_admission import CachedAdmission
from nats_backpressure.client.newest import put_newest
from nats_backpressure.client.not_async import check_not_async
from nats_backpressure.client.shedder import CRITICAL, NORMAL
from nats_backpressure.client.startup import Startup
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.client.strictest_states import StrictestStates
from nats_backpressure.client.subject_template import widened
from nats_backpressure.protocol.values import PRIORITIES, Priority

MAX_SUBJECTS = 10_000
"""Subjects given to `admit` whose answers are cached; the one computed longest ago makes room, and is computed again on
the next call."""


class LocalAdmission:
    """What BackpressureClient decides by itself. Not thread-safe."""

    def __init__(self, on_count: Callable[[str, str], None] | None, max_subjects: int) -> None:
        if on_count is not None:
            check_not_async(on_count, "on_count")
        self.stats = Stats(on_count=on_count)
        self.logger = OnceLogger()
        self._max_subjects = max_subjects
        self._mirror = StateMirror()
        self._strictest = StrictestStates(self._mirror)
        self._cached: dict[str, CachedAdmission] = {}
        self._follows = False
        """Whether it follows, or followed, the states."""
        self._ready = asyncio.Event()
        """Set once every state was read."""
        self._startup = Startup()

    def admit(self, subject: str | None, priority: Priority = NORMAL) -> Admission:
        """Whether to let one request through, decided without I/O. Every call counts as a request.

        `priority` is `low`, `normal`, `high` or `critical`; the low ones are shed first, `critical` never. For what is
        no plain subject (`*`, `>`, blanks, an empty token) the strictest watched state decides that it could mean.
        Raises nothing, whatever is given.
        """
        now = time.monotonic()
        try:
            cached = self._cached.get(subject)  # type: ignore[arg-type]  # None is never a key
        except TypeError:  # a list, for example
            cached = None
        if cached is None or cached.version != self._mirror.version or now >= cached.until:
            cached = self._refreshed(subject, now)
        return self._answer(cached, priority, now)

    def admit_overlapping(self, pattern: str, priority: Priority = NORMAL) -> Admission:
        """As `admit`, for a subject of which only a pattern is known: the strictest of the states decides that overlap
        it, and the request counts for that one."""
        now = time.monotonic()
        return self._answer(self._overlapping(pattern, now), priority, now)

    def _answer(self, cached: CachedAdmission, priority: Priority, now: float) -> Admission:
        if priority is not NORMAL and priority not in PRIORITIES:
            priority = self._known(priority, cached.subject)
        cached.offered += 1
        stats, admitted = self.stats, cached.always or self._admits(cached, priority, now)
        if admitted:
            cached.admitted += 1
            stats.admitted += 1
        else:
            stats.shed += 1
        if stats.on_count is not None:
            stats.notify("admitted" if admitted else "shed", cached.subject)
        return cached.yes if admitted else cached.no

    def _refreshed(self, subject: object, now: float) -> CachedAdmission:
        """The answer for a subject, computed as of now."""
        if not isinstance(subject, str) or not subject:
            return CachedAdmission("")
        cached = self._cached.get(subject) or CachedAdmission(subject)
        if gone := put_newest(self._cached, subject, cached, self._max_subjects):
            gone.flush_counts()
        if not cached.is_plain and subject not in self._mirror.states:
            self._report_bad_subject(subject)
            return self._overlapping(widened(subject), now)
        self._mirror.refresh(cached, now)
        return cached

    def _overlapping(self, pattern: str, now: float) -> CachedAdmission:
        deciding = self._strictest.deciding(pattern, now)
        if deciding is None:
            return CachedAdmission(pattern)
        cached = self._cached.get(deciding.subject)
        if cached is None or cached.version != self._mirror.version or now >= cached.until:
            cached = self._refreshed(deciding.subject, now)
        return cached

    def _admits(self, cached: CachedAdmission, priority: Priority, now: float) -> bool:
        """Whether to admit one request where not every request is admitted."""
        if cached.deciding is None:
            self._count_unwatched(cached.subject, now)
            return True
        if cached.decision.action == "continue":  # a dry run
            self.stats.count("would", cached.subject)
            return True
        if priority == CRITICAL:
            return True
        return cached.deciding.admit(cached.decision.ratio, priority, now)

    def _known(self, priority: Priority, subject: str) -> Priority:
        """The priority, or `normal` for one that there is not."""
        if priority in PRIORITIES:
            return priority
        self.stats.count("bad_priority", subject)
        given = repr(priority[:80]) if isinstance(priority, str) else f"of type {type(priority).__name__}"
        text = f"unknown priority {given} for {subject[:200]}: treated as normal; there are {', '.join(PRIORITIES)}"
        self.logger.warn("bad_priority", given, text)
        return NORMAL

    def _report_bad_subject(self, subject: str) -> None:
        self.stats.count("bad_subject", subject)
        text = f"admit({subject[:120]!r}): no plain subject; the strictest watched state that it could mean decides"
        self.logger.warn("bad_subject", "", text)

    def _count_unwatched(self, subject: str, now: float) -> None:
        if not subject:
            self.stats.count("no_subject")
            self.logger.warn("no_subject", "admit", "admit() without a subject, or with what is no text: admitted")
            return
        self.stats.count("unwatched", subject)
        if not self._startup.is_over(now):
            return
        if not self._follows and not self._ready.is_set():
            text = "admit() without watch(): every request is admitted until `await client.watch([...])`"
            self.logger.warn("unwatched", "watch()", text)
        elif self._ready.is_set():
            hint = "" if self._mirror.filter.covers(subject) else " (it was not given to watch())"
            self.logger.warn("unwatched", subject, f"{subject[:200]}: watched by nobody, admitted{hint}")
