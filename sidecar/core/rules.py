"""The words of a policy: every field, its unit, its bounds and its default."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Mark = Annotated[float, Meta(ge=0.001, le=1e15)]
"""Bounded on both sides so that no value divided by its mark leaves the finite numbers."""
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=86_400)]


class MarkRule(Struct, frozen=True, forbid_unknown_fields=True):
    """Three marks of one signal, warn <= critical <= overload; a value counts when it is above its mark."""

    warn: Mark
    critical: Mark
    overload: Mark


class AdmissionRule(Struct, frozen=True, forbid_unknown_fields=True):
    """How a gateway is told to shed; `binary` is all or nothing."""

    mode: Literal["binary"] = "binary"


class Policy(Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as overload for a subject, and what is answered then. The defaults are the router's."""

    mode: Literal["enforce", "observe"] = "enforce"
    pending: MarkRule = MarkRule(10, 100, 1000)
    latency_p95: MarkRule = MarkRule(500, 2000, 5000)
    """Milliseconds."""
    inflight: MarkRule = MarkRule(50, 200, 500)
    drain_seconds: MarkRule = MarkRule(0.5, 2, 5)
    active_signals: Annotated[int, Meta(ge=1, le=4)] = 2
    alone_factor: Annotated[float, Meta(ge=1, le=1e6)] = 10
    recovery_threshold: Share = 0.5
    recovery_hold_seconds: Seconds = 1.0
    stall_seconds: Seconds = 10
    retry_after_seconds: Annotated[int, Meta(ge=1, le=86_400)] = 30
    max_retry_attempts: Annotated[int, Meta(ge=0, le=1000)] = 3
    backoff_strategy: Literal["constant", "linear", "exponential"] = "exponential"
    alert_on_active: bool = True
    alert_on_warning: bool = False
    on_unknown: Literal["hold", "continue", "reject"] = "hold"
    hold_seconds: Seconds = 30
    on_paused: Literal["judge", "ignore"] = "judge"
    count_backfill: bool = True
    admission: AdmissionRule = AdmissionRule()


class Effective(Struct, frozen=True):
    """A policy after all layers, and which layer each field came from (dotted field -> layer).

    Shared by all consumers for which the same is in force: never change `sources`.
    """

    policy: Policy
    sources: dict[str, str]
