"""What a subject was like over the last minutes and hours: the request, and the reply."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from nats_backpressure.protocol.requests import BadRequest

SHORTEST, LONGEST = 60, 86_400
UNITS = {"m": 60, "h": 3600}
MOST_WINDOWS = 16
WINDOW = re.compile(r"([1-9][0-9]{0,4})([mh])")


class MetricsRequest(Struct, frozen=True):
    windows: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MOST_WINDOWS)] = ("1m", "5m", "1h")


class Range(Struct, frozen=True):
    """None where nothing is known."""

    min: float | None
    mean: float | None
    max: float | None


class EventCounts(Struct, frozen=True):
    backpressure_active: int
    backpressure_warning: int
    recovery: int


class TimeIn(Struct, frozen=True):
    active_ms: int
    warning_ms: int
    inactive_ms: int
    unknown_ms: int


class Window(Struct, frozen=True):
    coverage: float
    """The share of the window for which this replica has samples."""
    events: EventCounts
    time_in: TimeIn
    pending: Range
    inflight: Range
    latency_p95_ms: Range
    arrival_rate: Range
    ack_rate: Range


class Windows(Struct, frozen=True):
    subject: str
    matched: tuple[str, ...]
    total_events: int
    active_events: int
    warning_events: int
    recovery_events: int
    last_event_time: str | None
    windows: dict[str, Window]


def seconds(window: str) -> int:
    """How long a window is. Raises BadRequest."""
    found = WINDOW.fullmatch(window)
    length = int(found[1]) * UNITS[found[2]] if found else 0
    if not SHORTEST <= length <= LONGEST:
        raise BadRequest(f"`{window[:20]}` is no window from 1m to 24h - at `$.windows`")
    return length
