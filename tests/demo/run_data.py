"""Rows, events and counts of a demo run, as test data."""

from __future__ import annotations

from typing import Any

from nats_backpressure.demo.scenario import Scenario
from nats_backpressure.demo.summary import Row, RunData

SCENARIO = Scenario(workers=10, seconds_per_message=0.1, seconds=10.0, calm=2.0, deadline=5.0)  # 100 a second

ACTIVE: dict[str, Any] = {
    "type": "backpressure_active",
    "seq": 1,
    "from": "inactive",
    "to": "active",
    "reasons": ["pending", "drain"],
    "retry_after_seconds": 30,
}

FIRING = ACTIVE | {"type": "alert_firing", "seq": 2, "from": "active", "alert": {"name": "long-queue"}}

RECOVERY = ACTIVE | {"type": "recovery", "seq": 3, "from": "active", "to": "inactive", "reasons": []}


def row(at: float, status: str = "inactive", backlog: int = 0, p95_ms: float | None = None) -> Row:
    return Row(at, 1000, 100, 900, 95, backlog, 20, p95_ms, status, 0.1)


def run_data(**fields: Any) -> RunData:
    return RunData(**{"scenario": SCENARIO, "rows": [row(0.25), row(0.5, "active", 300, 450.0)], **fields})
