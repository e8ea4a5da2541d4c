"""What a gateway reports: what it was offered since its last report, and nothing from a time without connection."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from nats_backpressure.client.load_reports import LoadReports
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.protocol.subjects import Names
from tests.support.background import meanwhile


class Connection:
    def __init__(self) -> None:
        self.is_connected = False
        self.reports: list[dict[str, float]] = []

    async def publish(self, subject: str, payload: bytes) -> None:
        self.reports.append(json.loads(payload))


async def test_what_came_without_a_connection_is_not_reported_after_it() -> None:
    connection, state = Connection(), SimpleNamespace(subject="orders", offered=6000, admitted=6000)
    mirror: Any = SimpleNamespace(states={"orders": state})
    reports = LoadReports(connection, Names(), Stats(), OnceLogger())  # type: ignore[arg-type]
    async with meanwhile(reports.run(0.01, {}, mirror)):
        while state.offered:
            await asyncio.sleep(0)
        connection.is_connected, state.offered, state.admitted = True, 5, 4
        while not connection.reports:
            await asyncio.sleep(0)
    assert [(each["offered"], each["admitted"]) for each in connection.reports] == [(5, 4)]
