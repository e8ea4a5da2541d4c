"""ReadingGap: logs when nothing was read for so long that statuses are stale, then unknown, and when that is over."""

from __future__ import annotations

import structlog

from nats_backpressure.protocol.values import Freshness
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.subject_registry import SubjectRegistry

log = structlog.get_logger()

COSTS = {
    Freshness.STALE: "answers repeat what was known, marked stale; refusals open when their hold is over",
    Freshness.UNKNOWN: "every status is unknown, and no gateway is held back unless its policy says so",
}


class ReadingGap:
    """Of all streams together; `report` is called often. An event about it waits until NATS is back."""

    def __init__(self, registry: SubjectRegistry, clock: Clock) -> None:
        self._registry, self._clock = registry, clock
        self._logged = Freshness.KNOWN
        self._longest = 0.0
        """Seconds of the present gap."""

    def report(self) -> None:
        newest = self._registry.newest_read_at
        if newest is None:
            return
        observe, age = self._registry.settings.observe, self._clock.now().mono - newest
        state = Freshness.KNOWN
        if age >= observe.stale_after_seconds:
            state = Freshness.UNKNOWN if age >= observe.unknown_after_seconds else Freshness.STALE
        if state is not Freshness.KNOWN:
            self._longest = age
        if state is self._logged:
            return
        self._logged = state
        if state is Freshness.KNOWN:
            log.info("reading.resumed", seconds=round(self._longest, 1))
        else:
            log.warning(
                "reading.stopped",
                seconds=round(age, 1),
                statuses=state.value,
                cost=COSTS[state],
                hint="the lines `nats.unreachable` or `stage.failing` say why",
            )
