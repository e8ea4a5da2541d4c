"""LoadReports: publishes what a gateway was offered and admitted, since the sidecar itself sees only the admitted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import msgspec
from nats.aio.client import Client

from nats_backpressure.client.cached_admission import CachedAdmission
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.protocol.subjects import Names, encode


class LoadReports:
    """One report for each watched subject that was offered something since the last one."""

    def __init__(self, nc: Client, names: Names, stats: Stats, logger: OnceLogger) -> None:
        self._nc, self._prefix, self._stats, self._logger = nc, names.prefix, stats, logger

    async def run(self, interval: float, cached: Mapping[str, CachedAdmission], mirror: StateMirror) -> None:
        """One each `interval` seconds, until cancelled."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            for admission in cached.values():
                admission.flush_counts()
            for state in tuple(mirror.states.values()):
                if not state.offered:
                    continue
                report = {"offered": state.offered, "admitted": state.admitted, "seconds": round(now - last, 3)}
                state.offered = state.admitted = 0
                if self._nc.is_connected:  # what came without a connection would look like the load of one interval
                    await self._publish(f"{self._prefix}.report.gateway.{encode(state.subject)}", report)
            last = now

    async def _publish(self, subject: str, report: dict[str, float]) -> None:
        try:
            await self._nc.publish(subject, msgspec.json.encode(report))
            self._stats.count("reports")
        except Exception as error:  # whatever nats-py raises, the next report is soon
            self._logger.warn("report", "", f"offered and admitted requests cannot be reported: {error}")
