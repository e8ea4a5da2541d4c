"""The messages that a sidecar publishes, stores and answers with: one Struct each, for the server and its clients.

Every field has a description, which the JSON Schemas and docs/protocol.md show. `decoding` reads messages of newer
versions: unknown fields are ignored, and an unknown value is read as the most harmless one.
"""

from __future__ import annotations

from nats_backpressure.protocol.messages.decisions import Decision, Pull
from nats_backpressure.protocol.messages.events import AlertChange, Event, Problem
from nats_backpressure.protocol.messages.fields import Amount, Count, Mark, Ratio, Subject, Time
from nats_backpressure.protocol.messages.statuses import (
    ConsumerStatus,
    Forgotten,
    Levels,
    Metrics,
    Override,
    Recovery,
    Status,
    StatusList,
    Thresholds,
)
from nats_backpressure.protocol.messages.stored import SCHEMA, Heartbeat, State

__all__ = [
    "SCHEMA",
    "AlertChange",
    "Amount",
    "ConsumerStatus",
    "Count",
    "Decision",
    "Event",
    "Forgotten",
    "Heartbeat",
    "Levels",
    "Mark",
    "Metrics",
    "Override",
    "Problem",
    "Pull",
    "Ratio",
    "Recovery",
    "State",
    "Status",
    "StatusList",
    "Subject",
    "Thresholds",
    "Time",
]
