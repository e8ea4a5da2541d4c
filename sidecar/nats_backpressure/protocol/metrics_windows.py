"""Request and reply of the endpoint `metrics`: a subject over the last minutes and hours, in numbers."""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta, Struct

from nats_backpressure.protocol.messages import Count, Ratio, Time
from nats_backpressure.protocol.requests import BadRequest

SHORTEST, LONGEST = 60, 86_400
UNITS = {"m": 60, "h": 3600}
MOST_WINDOWS = 16
WINDOW = re.compile(r"([1-9][0-9]{0,4})([mh])")


class MetricsRequest(Struct, frozen=True):
    """The payload of `get.metrics`."""

    windows: Annotated[
        tuple[Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,4}[mh]$")], ...],
        Meta(min_length=1, max_length=MOST_WINDOWS, description="Lengths, from `1m` to `24h`."),
    ] = ("1m", "5m", "1h")


class Range(Struct, frozen=True):
    """Of one measurement over a window; null where nothing is known."""

    min: Annotated[float | None, Meta(description="The smallest value.")]
    mean: Annotated[float | None, Meta(description="The mean over time.")]
    max: Annotated[float | None, Meta(description="The largest value.")]


class EventCounts(Struct, frozen=True):
    """Events in a window, by type."""

    backpressure_active: Annotated[Count, Meta(description="How often the status rose to `active`.")]
    backpressure_warning: Annotated[Count, Meta(description="How often the status rose to `warning`.")]
    recovery: Annotated[Count, Meta(description="How often the status fell.")]


class TimeIn(Struct, frozen=True):
    """Time in each status, within a window."""

    active_ms: Annotated[Count, Meta(description="Milliseconds in `active`.")]
    warning_ms: Annotated[Count, Meta(description="Milliseconds in `warning`.")]
    inactive_ms: Annotated[Count, Meta(description="Milliseconds in `inactive`.")]
    unknown_ms: Annotated[Count, Meta(description="Milliseconds in `unknown`, or not watched.")]


class Window(Struct, frozen=True):
    """What a subject was like in one window that ends now."""

    coverage: Annotated[Ratio, Meta(description="Share of the window for which this replica has samples.")]
    events: Annotated[
        EventCounts,
        Meta(
            description="Events in the window, as far as they are in memory: at most the newest 256 of the subject, of "
            "all types. So a count is the least that there were; `total_events` counts all."
        ),
    ]
    time_in: Annotated[TimeIn, Meta(description="Time in each status.")]
    pending: Annotated[Range, Meta(description="Pending messages.")]
    inflight: Annotated[Range, Meta(description="Messages in flight.")]
    latency_p95_ms: Annotated[Range, Meta(description="p95 latency in milliseconds.")]
    arrival_rate: Annotated[Range, Meta(description="Messages per second that arrived.")]
    ack_rate: Annotated[Range, Meta(description="Messages per second that were acknowledged.")]


class Windows(Struct, frozen=True):
    """The answer to `get.metrics`."""

    subject: Annotated[str, Meta(description="The subject that was asked about.")]
    matched: Annotated[tuple[str, ...], Meta(description="The watched subject that the answer is about.")]
    total_events: Annotated[
        Count,
        Meta(
            description="Changes of status so far, also before a restart. Counts from 0 after the stored state was "
            "lost (a new epoch)."
        ),
    ]
    active_events: Annotated[Count, Meta(description="Of them, rises to `active`.")]
    warning_events: Annotated[Count, Meta(description="Of them, rises to `warning`.")]
    recovery_events: Annotated[Count, Meta(description="Of them, falls.")]
    last_event_time: Annotated[Time | None, Meta(description="When the newest of them was. null: there was none.")]
    windows: Annotated[dict[str, Window], Meta(description="By length, as in the request.")]


def seconds(window: str) -> int:
    """How long a window is. Raises BadRequest."""
    match = WINDOW.fullmatch(window)
    length = int(match[1]) * UNITS[match[2]] if match else 0
    if not SHORTEST <= length <= LONGEST:
        raise BadRequest(f"`{window[:20]}` is no window from 1m to 24h - at `$.windows`")
    return length
