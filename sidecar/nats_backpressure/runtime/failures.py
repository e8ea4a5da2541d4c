"""Failures: logs what keeps failing, one line per stage: what it costs and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from msgspec import Struct

from nats_backpressure.runtime.observations import ConsumersReading, Received, StreamsReading
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.tasks import Bounded, OnceIn

log = structlog.get_logger()

AFTER = 5.0
"""Seconds for which something fails before it is logged."""
FORGOTTEN_AFTER = 120.0
"""Seconds without another failed try after which something is no longer tried: another replica does it now."""
AGAIN = 300.0
"""Seconds after which the same error is logged again."""
SHOWN = 5
"""Subjects or streams in one line; further ones are counted."""
MOST = 10_000
"""Subjects and streams that are known to fail; the oldest is dropped first."""

NOT_CONNECTED = "not connected to NATS"
"""The error of everything without a connection, which is logged by itself."""

NOTHING = "no stream is read, and no request is answered"
COSTS: Final = {
    "resources": NOTHING,
    "load states": NOTHING,
    "state bucket": "changes of all subjects are neither stored nor published; answers are marked stale",
    "events stream": "those who wait for events learn of no change; the stored states are right",
    "list streams": "statuses become stale, then unknown; after that no gateway is held back",
    "read consumers": "the subjects of these streams become stale, then unknown; then no gateway is held back for them",
    "heartbeat": "clients that watch take the sidecar for stopped, and open",
    "load": "these subjects have no status yet",
    "write": "changes of these subjects are neither stored nor published; answers are marked stale",
    "publish": "those who wait for events do not learn of changes of these subjects; the stored state is right",
    "events": "events in time windows are not counted, and questions about the past read the stream each time",
    "forget": "states of subjects that are gone stay in the bucket",
    "policies": "what was put into the policy bucket, overrides too, is not in force",
}
"""What it costs while a stage fails, by the name of the stage."""

FIRST: Final = frozenset({"resources", "load states"})
"""Stages before which no other one can work: while they fail, the others are not logged."""


class _Failing(Struct):
    """The monotonic times of the first and of the last try that failed, and the last error."""

    since: float
    last: float = 0.0
    error: str = ""


class Failures:
    """What fails now, by stage and by what it concerns (a subject or a stream, or nothing)."""

    def __init__(self, clock: Clock, hint: Callable[[str], str] = lambda error: "it is tried again") -> None:
        """`hint` returns what to do about an error."""
        self._clock, self._hint = clock, hint
        self._failing: Bounded[tuple[str, str], _Failing] = Bounded(MOST)
        self._logged = OnceIn(AGAIN)
        self._reported: set[str] = set()
        """Stages that a line was logged about."""

    def failed(self, stage: str, error: object, what: str = "", since: float | None = None) -> None:
        """A try failed; `since`: the monotonic time at which it began, where that is known."""
        now, text = self._clock.now().mono, str(error)
        if NOT_CONNECTED in text:
            return
        failing = self._failing.setdefault((stage, what), _Failing(now if since is None else since))
        failing.last, failing.error = now, text

    def read_elsewhere(self, received: Received) -> None:
        """Another replica read what is read here, too."""
        match received.shown:
            case StreamsReading(partial=False):
                self.works("list streams")
            case ConsumersReading(partial=False):
                self.works("read consumers", received.stream)

    def works(self, stage: str, what: str = "") -> None:
        """A try succeeded, or nothing is to be done any more."""
        self._failing.pop((stage, what), None)

    @contextmanager
    def stage(self, stage: str, what: str = "") -> Iterator[None]:
        """Note whether the block raises Unavailable."""
        began = self._clock.now().mono
        try:
            yield
        except Unavailable as error:
            self.failed(stage, error, what, began)
            raise
        self.works(stage, what)

    def report(self) -> None:
        """Log what has failed for AFTER seconds; to be called often."""
        if not self._failing and not self._reported:
            return
        now = self._clock.now().mono
        failing: dict[str, list[tuple[str, _Failing]]] = {}
        for (stage, what), each in list(self._failing.items()):
            if now - each.last >= FORGOTTEN_AFTER:
                del self._failing[stage, what]
            elif now - each.since >= AFTER:
                failing.setdefault(stage, []).append((what, each))
        present = {stage for stage, _ in self._failing}
        for stage, each_one in failing.items():
            if stage in FIRST or not present & FIRST:
                self._report_stage(stage, each_one, now)
        for stage in self._reported - present:
            self._logged.forget(stage)
            log.info("stage.works", stage=stage)
        self._reported &= present

    def _report_stage(self, stage: str, failing: list[tuple[str, _Failing]], now: float) -> None:
        _, oldest = min(failing, key=lambda each: each[1].since)
        if not self._logged.first(now, stage, oldest.error):
            return
        self._reported.add(stage)
        names = [what for what, _ in failing if what]
        log.warning(
            "stage.failing",
            stage=stage,
            error=oldest.error,
            seconds=round(now - oldest.since, 1),
            **({"of": names[:SHOWN], "count": len(names)} if names else {}),
            cost=COSTS[stage],
            hint=self._hint(oldest.error),
        )
