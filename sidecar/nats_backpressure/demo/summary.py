"""Computes the summary of one demo run (goodput, latencies, counts) from its rows, events and reports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from nats_backpressure.demo.scenario import Scenario


class Row(Struct, frozen=True):
    """One moment of a run; rates are per second, over the time since the previous row."""

    at: float
    offered: float
    admitted: float
    shed: float
    processed: float
    backlog: int
    inflight: int
    p95_ms: float | None
    status: str
    admit_ratio: float


class RunData(Struct):
    """Everything collected in one run."""

    scenario: Scenario
    rows: list[Row] = []
    events: list[dict[str, Any]] = []
    latencies: list[tuple[float, float]] = []
    """(seconds into the run at the ack, seconds from request to ack)."""
    callers: Counter[str] = Counter()
    worker: Counter[str] = Counter()
    lost: int = 0
    """Messages that the server gave up after max_deliver deliveries."""
    metrics_page: str = ""
    """The sidecar's metrics at the end."""
    unfinished: int = 0
    """Messages pending or in flight at the end."""


class Summary(Struct, frozen=True):
    mode: str
    overload: float
    capacity: float
    goodput: float
    """Messages per second done within the deadline during the overload, as a share of the capacity."""
    p50_seconds: float | None
    p99_seconds: float | None
    """From request to ack, of all messages done."""
    shed: float
    """Share of the offered requests that were rejected with 503."""
    failed: int
    """Requests that got neither a 202 nor a 503."""
    events: dict[str, int]
    status_changes: int
    status_changes_per_minute: float
    largest_backlog: int
    done: int
    redelivered: int
    naked: int
    """Messages that the router returned with a NAK."""
    lost: int


def summarize(data: RunData) -> Summary:
    scenario = data.scenario
    over = (scenario.calm, scenario.calm + scenario.seconds)
    in_time = sum(took <= scenario.deadline for at, took in data.latencies if over[0] <= at < over[1])
    took = sorted(seconds for _, seconds in data.latencies)
    kinds = Counter(event["type"] for event in data.events)
    changes = sum(kinds[kind] for kind in ("backpressure_active", "backpressure_warning", "recovery"))
    offered = max(1, data.callers["offered"])
    return Summary(
        mode=scenario.mode,
        overload=scenario.overload,
        capacity=scenario.capacity,
        goodput=round(in_time / scenario.seconds / scenario.capacity, 3),
        p50_seconds=_percentile(took, 0.5),
        p99_seconds=_percentile(took, 0.99),
        shed=round(data.callers["shed"] / offered, 3),
        failed=data.callers["failed"] + data.callers["missed"],
        events=dict(sorted(kinds.items())),
        status_changes=changes,
        status_changes_per_minute=round(60 * changes / (scenario.seconds + 2 * scenario.calm), 1),
        largest_backlog=max((row.backlog for row in data.rows), default=0),
        done=data.worker["done"],
        redelivered=data.worker["redelivered"],
        naked=data.worker["naked"],
        lost=data.lost,
    )


def _percentile(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[math.ceil(share * len(ordered)) - 1], 3) if ordered else None
