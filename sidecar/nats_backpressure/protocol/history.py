"""Replies about the past of a subject: its events, transitions, last recovery and alerts."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct, field

from nats_backpressure.protocol import messages
from nats_backpressure.protocol.messages import Count, Time
from nats_backpressure.protocol.values import KnownStatusName

Matched = Annotated[tuple[str, ...], Meta(description="The watched subject that the answer is about.")]
Truncated = Annotated[bool, Meta(description="Whether older or further ones were left out.")]


class Events(Struct, frozen=True):
    """The answer to `get.events`."""

    matched: Matched
    events: Annotated[
        tuple[Annotated[Raw, Meta(extra_json_schema={"$ref": "#/$defs/Event"})], ...],
        Meta(description="The newest first, each an Event as it was published."),
    ]
    truncated: Truncated


class Transition(Struct, frozen=True):
    """One change of status."""

    from_: Annotated[KnownStatusName, Meta(description="The status before.")] = field(name="from")
    to: Annotated[KnownStatusName, Meta(description="The status after.")]
    at: Annotated[Time, Meta(description="When it changed.")]
    reasons: Annotated[tuple[str, ...], Meta(description="Why, as in the event.")]
    held_ms: Annotated[
        Count | None, Meta(description="How long `from` had lasted, in milliseconds. null: its start is not known.")
    ]


class Transitions(Struct, frozen=True):
    """The answer to `get.history`."""

    matched: Matched
    transitions: Annotated[tuple[Transition, ...], Meta(description="The newest first.")]
    truncated: Truncated


class Recovered(messages.Recovery, frozen=True, kw_only=True):
    """The answer to `get.recovery`."""

    matched: Matched


class Alert(messages.AlertChange, frozen=True, kw_only=True):
    """An alert of a subject, as it is now."""

    subject: Annotated[str, Meta(description="The watched subject.")]


class Alerts(Struct, frozen=True):
    """The answer to `get.alerts`."""

    matched: Annotated[
        tuple[str, ...] | None, Meta(description="The watched subject that the answer is about. null: all of them.")
    ]
    alerts: Annotated[tuple[Alert, ...], Meta(description="Firing ones first, then by subject and name.")]
    truncated: Truncated = False
