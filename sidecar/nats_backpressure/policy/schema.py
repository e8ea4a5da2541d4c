"""The types of policies: Policy with unit, bounds and default of each field; Guard, Override, Effective, Rejection."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Diagnosis, PolicySource

SMALLEST_MARK: Final = 0.001
LARGEST_MARK: Final = 1e15
SMALLEST_SHARE: Final = 0.0001
"""Of requests: answers have four decimals."""
Mark = Annotated[float, Meta(ge=SMALLEST_MARK, le=LARGEST_MARK)]
"""Bounded on both sides so that no value divided by its mark leaves the finite numbers."""
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class MarkRule(Struct, frozen=True, forbid_unknown_fields=True):
    """Three marks of one signal, warn <= critical <= overload; a value counts when it is above its mark."""

    warn: Mark
    """For display only: the level `warn` in a status."""
    critical: Mark
    """For display, and for `pending`: drain is evaluated only above this mark."""
    overload: Mark
    """The mark that moves the status."""


class PendingRule(MarkRule, frozen=True, forbid_unknown_fields=True):
    """Marks of the backlog; with `overload_seconds` the overload mark is that many seconds of work at the measured
    rate, kept within `min` and `max`, and `overload` holds until the rate is known."""

    overload_seconds: Annotated[float, Meta(ge=0.001, le=86_400)] | None = None
    """The overload mark in seconds of work at the measured rate; `overload` holds until the rate is known."""
    min: Mark | None = None
    """Smallest overload mark that `overload_seconds` may give, in messages."""
    max: Mark | None = None
    """Largest overload mark that `overload_seconds` may give, in messages."""


class InflightRule(MarkRule, frozen=True, forbid_unknown_fields=True):
    """Marks in flight; with `overload_ratio` the overload mark is that share of the consumer's max_ack_pending, and
    `overload` holds where there is no such cap."""

    overload_ratio: Annotated[float, Meta(ge=0.001, le=1)] | None = None
    """The overload mark as a share of the consumer's `max_ack_pending`; `overload` holds where there is no such cap."""


class AdmissionRule(Struct, frozen=True, forbid_unknown_fields=True):
    """How requests are refused: `binary` is all or nothing, `adaptive` admits a share."""

    mode: Literal["binary", "adaptive"] = "binary"
    """`binary` admits everything or nothing, `adaptive` a share."""
    floor: Annotated[float, Meta(ge=SMALLEST_SHARE, le=1)] = 0.01
    """The smallest share that adaptive mode admits."""
    target_drain_seconds: Annotated[float, Meta(ge=0.01, le=3600)] = 2
    """The backlog that adaptive mode aims at, in seconds of work."""


class When(Struct, frozen=True, forbid_unknown_fields=True):
    """The condition of an alert: exactly one of these is given."""

    status: Literal["warning", "active"] | None = None
    """The subject has this status or a worse one."""
    diagnosis: Diagnosis | None = None
    """A consumer has this diagnosis: see [diagnosis.md](diagnosis.md)."""
    pending_above: Annotated[float, Meta(ge=0, le=1e15)] | None = None
    """More messages are pending than this."""
    inflight_above: Annotated[float, Meta(ge=0, le=1e15)] | None = None
    """More messages are in flight than this."""
    latency_p95_above_ms: Annotated[float, Meta(ge=0, le=1e15)] | None = None
    """The evaluated p95 latency is above this, in milliseconds."""
    stream_fill_above: Share | None = None
    """The stream holds more than this share of its own limits."""

    def __post_init__(self) -> None:
        if sum(getattr(self, name) is not None for name in self.__struct_fields__) != 1:
            raise ValueError(f"must hold exactly one of {', '.join(self.__struct_fields__)}")


class AlertRule(Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]
    """Name of the alert; different from all others of the policy. One named `backpressure_active` or
    `backpressure_warning` replaces the built-in one."""
    when: When
    """The condition."""
    for_seconds: Seconds = 0
    """Seconds for which the condition must hold before the alert fires."""
    severity: Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[A-Za-z0-9_.-]+$")] = "warning"
    """Free text for the receiver of the alert."""


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as overload for a subject, and what is answered then. The defaults are the router's."""

    mode: Literal["enforce", "observe"] = "enforce"
    """`observe` is a dry run: the subject is evaluated, published and counted, but the answer is `continue`, and
    `would` shows what it would have been."""
    pending: PendingRule = PendingRule(10, 100, 1000)
    """Marks of the messages that are not delivered yet."""
    latency_p95: MarkRule = MarkRule(500, 2000, 5000)
    """Marks of the latency from delivery to acknowledgement, in milliseconds."""
    inflight: InflightRule = InflightRule(50, 200, 500)
    """Marks of the messages that are delivered and not acknowledged. Never evaluated above 0.9 of the consumer's
    `max_ack_pending`."""
    drain_seconds: MarkRule = MarkRule(0.5, 2, 5)
    """Marks of the time until all waiting messages are processed, in seconds."""
    active_signals: Annotated[int, Meta(ge=1, le=4)] = 2
    """Number of latched signals that make the status `active`; fewer make it `warning`."""
    alone_factor: Annotated[float, Meta(ge=1, le=1e6)] = 10
    """`pending` or `drain` at this many times its overload mark makes the status `active` alone."""
    recovery_threshold: Share = 0.5
    """A latched signal is released when its value stays at or below this share of its mark."""
    recovery_hold_seconds: Seconds = 1.0
    """Seconds for which it must stay there."""
    stall_seconds: Seconds = 10
    """`nobody_pulling`, `cap_reached` or `server_stuck` for this many seconds, with `pending` overloaded, counts as a
    second signal."""
    retry_after_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 30
    """`Retry-After` for a refused caller; in adaptive mode the longest one."""
    max_retry_attempts: Annotated[int, Meta(ge=1, le=1000)] = 3
    """Attempts after which a refused caller should give up."""
    backoff_strategy: Literal["constant", "linear", "exponential"] = "exponential"
    """How the retry delay grows with the attempt."""
    alert_on_active: bool = True
    """Whether the built-in alert `backpressure_active` (critical) exists."""
    alert_on_warning: bool = False
    """Whether the built-in alert `backpressure_warning` exists."""
    alert_for_seconds: Seconds = 10
    """Of the built-in alerts: seconds for which the status must be reached before one fires, and left before it is
    resolved. Shorter breaks do not count (before it fires: those of at most 10 s), so a status that goes up and down
    fires once."""
    on_unknown: Literal["hold", "continue", "reject"] = "hold"
    """What happens to an answer without proof: see [Freshness](#freshness)."""
    hold_seconds: Seconds = 10
    """Seconds for which a refusal stays in force without a new proof."""
    on_paused: Literal["judge", "ignore"] = "judge"
    """`judge` counts a paused consumer like any other, `ignore` treats it as calm."""
    count_backfill: bool = True
    """If false, a consumer does not count while it surely reads history."""
    admission: AdmissionRule = AdmissionRule()
    """How a gateway sheds load."""
    alerts: Annotated[tuple[AlertRule, ...], Meta(max_length=64)] = ()
    """Alerts of this policy: see [Alerts](#alerts)."""
    override: tuple[Override, ...] = ()
    """Not written by users in a policy: filled from the overrides, which replace all layers; the most specific
    first."""


def in_force(policy: Policy, now: Now) -> Override | None:
    """The most specific override that is not over yet."""
    return next((one for one in policy.override if now.wall < one.until), None)


class FieldLimit(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits for one field of policies from the bucket and from consumer metadata."""

    field: Annotated[str, Meta(min_length=1, max_length=64)]
    """A field with a number: `inflight.overload`, `alone_factor`."""
    min: Annotated[float, Meta(ge=0, le=LARGEST_MARK)] | None = None
    """Smallest value that they may set."""
    max: Annotated[float, Meta(ge=0, le=LARGEST_MARK)] | None = None
    """Largest value that they may set."""


class Guard(Struct, frozen=True, forbid_unknown_fields=True):
    """Limits for policies from the bucket and from consumer metadata; can be set only in the settings file."""

    allow_bucket: bool = True
    """If false, policies and overrides in the bucket are ignored."""
    min_pending_overload: Mark | None = None
    """Smallest `pending.overload` that the bucket and metadata may set."""
    max_pending_overload: Mark | None = None
    """Largest `pending.overload` that the bucket and metadata may set."""
    limits: Annotated[tuple[FieldLimit, ...], Meta(max_length=64)] = ()
    """Limits for any other field with a number."""
    fixed: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(max_length=64)] = ()
    """Fields (`mode`, `on_unknown`) or groups of them (`admission`) that the bucket and metadata may not set."""
    override_actions: Annotated[tuple[Literal["open", "reject"], ...], Meta(max_length=2)] = ("open", "reject")
    """What an override may do; an empty list allows none."""
    max_override_seconds: Annotated[float, Meta(ge=1, le=604_800)] = 604_800
    """How long an override may last, from the time it was stored. A tenth more (an hour at most) is let through, since
    the clock of who writes it may be ahead."""


class Effective(Struct, frozen=True):
    """A policy after all layers, and which layer each field came from (dotted field -> layer).

    Shared by all consumers for which the same is in force: never change `sources`.
    """

    policy: Policy
    sources: dict[str, PolicySource]


class Override(Struct, frozen=True, forbid_unknown_fields=True):
    """An operator's decision that replaces the computed status, until it expires by itself."""

    action: Literal["open", "reject"]
    until: Annotated[float, Meta(ge=0, le=32_503_680_000)]
    """Unix seconds."""


class Rejection(Struct, frozen=True):
    """A policy for the subject that was refused. `mark` identifies this refusal."""

    mark: str
    errors: tuple[tuple[str, str], ...]
