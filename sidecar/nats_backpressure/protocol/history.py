"""What was: the replies about events, transitions, recoveries and alerts. `matched` names the subject that answered."""

from __future__ import annotations

from msgspec import Raw, Struct, field

from nats_backpressure.protocol import messages


class Events(Struct, frozen=True):
    """The newest first; each is an Event as it was told."""

    matched: tuple[str, ...]
    events: tuple[Raw, ...]
    truncated: bool


class Transition(Struct, frozen=True):
    from_: str = field(name="from")
    to: str
    at: str
    reasons: tuple[str, ...]
    held_ms: int | None
    """How long `from` had lasted; None where its beginning is not known."""


class Transitions(Struct, frozen=True):
    """The newest first."""

    matched: tuple[str, ...]
    transitions: tuple[Transition, ...]
    truncated: bool


class Recovered(messages.Recovery, frozen=True, kw_only=True):
    matched: tuple[str, ...]


class Alert(messages.AlertChange, frozen=True, kw_only=True):
    subject: str


class Alerts(Struct, frozen=True):
    """Those that fire first, then by subject and name; `matched` is None where all subjects were asked about."""

    matched: tuple[str, ...] | None
    alerts: tuple[Alert, ...]
    truncated: bool = False
