"""The messages of the wire, field for field as the contract has them; decoding ignores unknown fields."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Raw, Struct, UnsetType, field

SCHEMA = 1
"""Version of what is stored in the state bucket: of a state's `record`, and of the heartbeat."""

Role = Literal["gateway", "consumer"]


class Pull(Struct, frozen=True):
    """How much a consumer may take now, and when to ask again after a 0."""

    max_messages: int
    wait_ms: int


class Decision(Struct, frozen=True):
    subject: str
    matched: tuple[str, ...]
    role: Role
    status: str
    action: str
    reasons: tuple[str, ...]
    pressure: float | None
    retry_after_seconds: int
    max_retry_attempts: int
    backoff_strategy: str
    retry_delay_ms: int | None
    admit_ratio: float
    pull: Pull | None
    alert: bool
    would: str | None
    freshness: str
    sampled_at: str | None
    valid_for_ms: int
    incident: str | None
    state_keys: tuple[str, ...]
    event_subjects: tuple[str, ...]


class Metrics(Struct, frozen=True):
    """Counts are messages, `*_ms` milliseconds, rates messages per second; None where there is no evidence."""

    pending_messages: int | None = None
    inflight_messages: int | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_source: str | None = None
    stall_ms: float | None = None
    arrival_rate: float | None = None
    ack_rate: float | None = None
    drain_seconds: float | None = None
    overload_in_seconds: float | None = None
    oldest_age_seconds: float | None = None
    redelivery_ratio: float | None = None
    stream_fill: float | None = None


class Thresholds(Struct, frozen=True):
    """The marks in force, after a consumer's cap; the in-flight ones are None where that signal is absent.

    A whole one stays whole when it is read and written again: to some readers 10 and 10.0 are not the same.
    """

    queue_warn: int | float
    queue_critical: int | float
    queue_overload: int | float
    latency_warn_ms: int | float
    latency_critical_ms: int | float
    latency_overload_ms: int | float
    inflight_warn: int | float | None
    inflight_critical: int | float | None
    inflight_overload: int | float | None
    drain_warn_seconds: int | float
    drain_critical_seconds: int | float
    drain_overload_seconds: int | float


class Levels(Struct, frozen=True):
    pending: str = "normal"
    inflight: str = "normal"
    latency_p95: str = "normal"
    drain: str = "normal"


class Recovery(Struct, frozen=True):
    recovered: bool
    recovery_time: str | None
    incident: str | None
    duration_ms: int | None
    recoveries_total: int
    mean_time_to_recover_ms: int | None


class Override(Struct, frozen=True):
    """An operator's word over the judgement; `until` is when it expires."""

    action: Literal["open", "reject"]
    until: str


class ConsumerStatus(Struct, frozen=True):
    stream: str
    consumer: str
    status: str
    latched: tuple[str, ...]
    diagnosis: str | None
    metrics: Metrics
    freshness: str


class Status(Struct, frozen=True):
    subject: str
    status: str
    since: str | None
    incident: str | None
    pressure: float | None
    reasons: tuple[str, ...]
    metrics: Metrics
    levels: Levels
    thresholds: Thresholds | None
    diagnosis: str | None
    admit_ratio: float
    mode: str
    override: Override | None
    consumers: tuple[ConsumerStatus, ...]
    consumers_total: int
    matched: tuple[str, ...]
    state_keys: tuple[str, ...]
    event_subjects: tuple[str, ...]
    freshness: str
    stale_reason: str | None
    sampled_at: str | None
    age_ms: int | UnsetType | None = UNSET
    thresholds_from: dict[str, str] = {}
    """How those marks came about that are not simply the policy's, by signal."""
    policy: dict[str, Any] | UnsetType = UNSET
    recovery: Recovery | UnsetType = UNSET


class StatusList(Struct, frozen=True):
    total: int
    offset: int
    next_offset: int | None
    subjects: tuple[Status, ...]


class AlertChange(Struct, frozen=True):
    """What an alert event is about."""

    name: str
    severity: str
    state: str
    when: str
    value: int | float | str | None
    since: str


class Problem(Struct, frozen=True):
    path: str
    message: str


class Event(Struct, frozen=True):
    id: str
    type: str
    subject: str
    timestamp: str
    epoch: str
    seq: int
    incident: str | None
    from_: str = field(name="from")
    to: str
    reasons: tuple[str, ...]
    diagnosis: str | None
    pressure: float | None
    metrics: Metrics
    thresholds: Thresholds | None
    retry_after_seconds: int
    admit_ratio: float
    instance: str
    version: str
    lost: int | UnsetType = UNSET
    override: Override | None = None
    alert: AlertChange | UnsetType = UNSET
    errors: tuple[Problem, ...] | UnsetType = UNSET
    policy_revision: str | UnsetType = UNSET


class Heartbeat(Struct, frozen=True):
    """Value of the key `=heartbeat`: what the states say still held at `sampled_at`."""

    schema: int
    instance: str
    sampled_at: str | None
    subjects: int
    interval_ms: int
    """The longest time between two readings of a stream."""
    heartbeat_ms: int
    """Time to the next one of these."""
    stale_after_ms: int
    unknown_after_ms: int
    leaving: bool
    """Whether the last replica stops in an orderly way: nobody looks any more whether the states still hold."""


class State(Status, frozen=True, kw_only=True):
    """Value of a subject's key in the state bucket: its status, what a gateway needs, and one field of ours."""

    proof_age_ms: int | None = None
    """Where `freshness` is not known: milliseconds since its proof, when this was written."""
    action: str
    would: str | None
    retry_after_seconds: int
    max_retry_attempts: int
    backoff_strategy: str
    on_unknown: str
    hold_seconds: float
    epoch: str
    seq: int
    """Of the newest event of the subject; 0 before the first."""
    schema: int
    record: Raw
    """Ours, do not read: what a sidecar needs to go on from here. It may change with any version."""
