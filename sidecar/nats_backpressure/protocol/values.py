"""The words of the contract: statuses, actions, signals, diagnoses, types of events, and what names a consumer."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple


class Status(IntEnum):
    """How close to overload; ordered by severity so that the worst is the maximum."""

    UNKNOWN = -1
    INACTIVE = 0
    WARNING = 1
    ACTIVE = 2

    @property
    def word(self) -> str:
        return self.name.lower()


class Action(StrEnum):
    CONTINUE = "continue"
    THROTTLE = "throttle"
    REJECT = "reject"


class Freshness(StrEnum):
    KNOWN = "known"
    STALE = "stale"
    UNKNOWN = "unknown"


class Signal(StrEnum):
    """What counts towards the status, in the order reasons are listed."""

    PENDING = "pending"
    INFLIGHT = "inflight"
    LATENCY = "latency_p95"
    DRAIN = "drain"


class Level(StrEnum):
    """For display only: which mark a value stands above."""

    NORMAL = "normal"
    WARN = "warn"
    CRITICAL = "critical"
    OVERLOAD = "overload"


class EventType(StrEnum):
    ACTIVE = "backpressure_active"
    WARNING = "backpressure_warning"
    RECOVERY = "recovery"
    DATA_LOSS = "data_loss"
    MONITORING_LOST = "monitoring_lost"
    MONITORING_RESTORED = "monitoring_restored"
    ALERT_FIRING = "alert_firing"
    ALERT_RESOLVED = "alert_resolved"
    POLICY_REJECTED = "policy_rejected"


class Diagnosis(StrEnum):
    """What is going on with a consumer, the most severe first."""

    SERVER_STUCK = "server_stuck"
    CAP_REACHED = "cap_reached"
    NOBODY_PULLING = "nobody_pulling"
    POISON = "poison"
    STREAM_FULL = "stream_full"
    FALLING_BEHIND = "falling_behind"
    PAUSED = "paused"
    BACKFILLING = "backfilling"
    DRAINING = "draining"
    IDLE = "idle"
    HEALTHY = "healthy"


class ConsumerKey(NamedTuple):
    stream: str
    consumer: str
