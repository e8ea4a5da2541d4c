"""What a client reads from the wire: of every message only what it acts on, within bounds it can act on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

Action = Literal["continue", "throttle", "reject"]
Standing = Literal["inactive", "warning", "active", "unknown"]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Amount = Annotated[float, Meta(ge=0)]


class StateValue(Struct, frozen=True):
    """The value of a subject's key in the state bucket."""

    subject: str
    status: Standing
    action: Action
    would: Action | None = None
    mode: str = "enforce"
    admit_ratio: Ratio = 1.0
    retry_after_seconds: Amount = 0.0
    on_unknown: str = "hold"
    hold_seconds: Amount = 10.0
    pressure: float | None = None
    incident: str | None = None
    override: dict[str, Any] | None = None
    freshness: str = "known"
    proof_age_ms: Amount | None = None
    """How old the last proof was when this was written; None while `freshness` is known."""

    @property
    def renewed(self) -> bool:
        """Whether heartbeats prove that it still holds. An override holds for as long as a sidecar is there to end it,
        whatever is known of the consumers."""
        return self.override is not None or (self.freshness == "known" and self.status != "unknown")


class HeartbeatValue(Struct, frozen=True):
    """The value of the heartbeat key: what the states say held at `sampled_at`."""

    instance: str = ""
    sampled_at: str | None = None
    stale_after_ms: Annotated[float, Meta(gt=0)] = 10_000.0
    unknown_after_ms: Annotated[float, Meta(gt=0)] = 30_000.0
    interval_ms: Amount = 0.0
    heartbeat_ms: Amount = 0.0
    leaving: bool = False
    """Whether the last replica stops: nobody will look any more whether the states still hold."""


class Pull(Struct, frozen=True):
    """How many messages a consumer may take now; after a 0, when to ask again."""

    max_messages: Annotated[int, Meta(ge=0)]
    wait_ms: Amount = 0.0


class Decision(Struct, frozen=True):
    """The sidecar's answer to one question; or, where `failed_open` says why there is none, leave to go on."""

    subject: str
    role: str
    action: Action = "continue"
    status: Standing = "unknown"
    reasons: tuple[str, ...] = ()
    pressure: float | None = None
    retry_after_seconds: Amount = 0.0
    retry_delay_ms: Amount | None = None
    admit_ratio: Ratio = 1.0
    pull: Pull | None = None
    would: str | None = None
    freshness: str = "unknown"
    valid_for_ms: Amount = 0.0
    incident: str | None = None
    matched: tuple[str, ...] = ()
    failed_open: str | None = None
    """Why nobody decided: `timeout`, `no_responders`, `disconnected`, `unavailable`, `outage`, `busy`, `unwatched`,
    `refused`, `malformed`, `no_subject`; None for an answer."""


T = TypeVar("T", bound=Struct)


def read(value: bytes, kind: type[T]) -> T | None:
    """A value as what it should be; None for anything else. Unknown fields are ignored."""
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
