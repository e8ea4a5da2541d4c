"""Enums and names used in messages: statuses, actions, signals, diagnoses, types of events; and ConsumerKey."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Final, Literal, NamedTuple, cast, get_args

StatusName = Literal["unknown", "inactive", "warning", "active"]
KnownStatusName = Literal["inactive", "warning", "active"]
ActionName = Literal["continue", "throttle", "reject"]
FreshnessName = Literal["known", "stale", "unknown"]
MarkLevelName = Literal["normal", "warn", "critical", "overload"]
EventTypeName = Literal[
    "backpressure_active",
    "backpressure_warning",
    "recovery",
    "data_loss",
    "monitoring_lost",
    "monitoring_restored",
    "alert_firing",
    "alert_resolved",
    "policy_rejected",
]
DiagnosisName = Literal[
    "server_stuck",
    "cap_reached",
    "nobody_pulling",
    "poison",
    "stream_full",
    "falling_behind",
    "paused",
    "backfilling",
    "draining",
    "idle",
    "healthy",
]
Role = Literal["gateway", "consumer"]
Priority = Literal["low", "normal", "high", "critical"]
Mode = Literal["enforce", "observe"]
OnUnknown = Literal["hold", "continue", "reject"]
BackoffStrategy = Literal["constant", "linear", "exponential"]
OverrideAction = Literal["open", "reject"]
AlertState = Literal["pending", "firing", "resolved"]
LatencySource = Literal["sampled", "estimated", "stall"]
PolicySource = Literal["default", "file", "bucket", "consumer"]
StaleReason = Literal["age", "no_quorum"]

ROLES: Final[tuple[Role, ...]] = get_args(Role)
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)

SEVERITY: Final[dict[str, int]] = {"unknown": -1, "inactive": 0, "warning": 1, "active": 2}
"""Statuses by their name, as `Status` orders them."""


class Status(IntEnum):
    """How close to overload; ordered by severity so that the worst is the maximum."""

    UNKNOWN = -1
    INACTIVE = 0
    WARNING = 1
    ACTIVE = 2

    @property
    def word(self) -> StatusName:
        """As it is written in messages."""
        return cast(StatusName, self.name.lower())


class Action(StrEnum):
    _value_: ActionName
    CONTINUE = "continue"
    THROTTLE = "throttle"
    REJECT = "reject"


class Freshness(StrEnum):
    _value_: FreshnessName
    KNOWN = "known"
    STALE = "stale"
    UNKNOWN = "unknown"


class Signal(StrEnum):
    """What counts towards the status, in the order reasons are listed."""

    PENDING = "pending"
    INFLIGHT = "inflight"
    LATENCY = "latency_p95"
    DRAIN = "drain"


class MarkLevel(StrEnum):
    """For display only: the highest mark that a value is above."""

    _value_: MarkLevelName
    NORMAL = "normal"
    WARN = "warn"
    CRITICAL = "critical"
    OVERLOAD = "overload"


class EventType(StrEnum):
    _value_: EventTypeName
    ACTIVE = "backpressure_active"
    WARNING = "backpressure_warning"
    RECOVERY = "recovery"
    DATA_LOSS = "data_loss"
    MONITORING_LOST = "monitoring_lost"
    MONITORING_RESTORED = "monitoring_restored"
    ALERT_FIRING = "alert_firing"
    ALERT_RESOLVED = "alert_resolved"
    POLICY_REJECTED = "policy_rejected"


STATUS_EVENTS = (EventType.ACTIVE, EventType.WARNING, EventType.RECOVERY)
"""Those that report a change of the status."""
MONITORING_EVENTS = (EventType.MONITORING_LOST, EventType.MONITORING_RESTORED)
LARGEST_EVENT = 64 * 1024
"""Bytes of an event with its headers: none is published that is larger, and none is read."""
LEAST_TOO_HIGH = 2**53
"""No number of an event is as high: JSON numbers are exact below it."""


class Diagnosis(StrEnum):
    """What is going on with a consumer, the most severe first."""

    _value_: DiagnosisName
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
