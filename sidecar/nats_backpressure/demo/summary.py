"""What one run came to: pure, from the rows and counts that were gathered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from nats_backpressure.demo.scenario import Scenario


class Row(Struct, frozen=True):
    """One moment: rates are a second's, over the time since the row before."""

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
    """Everything that was seen of one run."""

    scene: Scenario
    rows: list[Row] = []
    events: list[dict[str, Any]] = []
    latencies: list[tuple[float, float]] = []
    """(when it was done, seconds from the caller's sending to the ack)."""
    callers: Counter[str] = Counter()
    worker: Counter[str] = Counter()
    lost: int = 0
    """Messages given up by the server after max_deliver deliveries."""
    page: str = ""
    """The sidecar's metrics at the end."""
    left: int = 0
    """Messages not worked off at the end."""


class Summary(Struct, frozen=True):
    mode: str
    overload: float
    capacity: float
    goodput: float
    """Messages a second that were done within the deadline while the overload lasted, as a share of the capacity."""
    p50_seconds: float | None
    p99_seconds: float | None
    """From the caller's sending to the ack, of all that was done."""
    shed: float
    """Share of the offered requests that were answered 503."""
    failed: int
    """Requests that got neither a 202 nor a 503."""
    events: dict[str, int]
    status_changes: int
    status_changes_per_minute: float
    largest_backlog: int
    done: int
    redelivered: int
    naked: int
    lost: int


def summarize(take: RunData) -> Summary:
    scene = take.scene
    over = (scene.calm, scene.calm + scene.seconds)
    in_time = sum(took <= scene.deadline for at, took in take.latencies if over[0] <= at < over[1])
    took = sorted(seconds for _, seconds in take.latencies)
    kinds = Counter(event["type"] for event in take.events)
    changes = sum(kinds[kind] for kind in ("backpressure_active", "backpressure_warning", "recovery"))
    offered = max(1, take.callers["offered"])
    return Summary(
        mode=scene.mode,
        overload=scene.overload,
        capacity=scene.capacity,
        goodput=round(in_time / scene.seconds / scene.capacity, 3),
        p50_seconds=_rank(took, 0.5),
        p99_seconds=_rank(took, 0.99),
        shed=round(take.callers["shed"] / offered, 3),
        failed=take.callers["failed"] + take.callers["missed"],
        events=dict(sorted(kinds.items())),
        status_changes=changes,
        status_changes_per_minute=round(60 * changes / (scene.seconds + 2 * scene.calm), 1),
        largest_backlog=max((row.backlog for row in take.rows), default=0),
        done=take.worker["done"],
        redelivered=take.worker["redelivered"],
        naked=take.worker["naked"],
        lost=take.lost,
    )


def _rank(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[math.ceil(share * len(ordered)) - 1], 3) if ordered else None
