"""StretchReport: logs when the budget has been too small for the planned readings for long, and when that is over."""

from __future__ import annotations

import structlog

log = structlog.get_logger()

STRETCHED, IN_BUDGET, STRETCHED_FOR = 2.0, 1.2, 60.0
"""It is logged that the budget is too small once intervals are stretched by the first factor for the last number of
seconds (a start is more work for a while), and that it is not below the second one."""


class StretchReport:
    """`report` is called often."""

    def __init__(self) -> None:
        self._stretched_since: float | None = None
        self._logged = False

    def report(self, stretch: float, streams: int, now: float) -> None:
        """Intervals are longer by this factor now, of so many streams."""
        if stretch < STRETCHED:
            self._stretched_since = None
        elif self._stretched_since is None:
            self._stretched_since = now
        elif now - self._stretched_since >= STRETCHED_FOR and not self._logged:
            self._logged = True
            log.warning(
                "reading.stretched",
                factor=round(stretch, 1),
                streams=streams,
                hint="intervals are longer by this factor; raise observe.api_requests_per_second, or watch less",
            )
        if stretch < IN_BUDGET and self._logged:
            self._logged = False
            log.info("reading.in_budget", streams=streams)
