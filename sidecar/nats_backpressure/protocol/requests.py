"""The requests of all endpoints, read leniently: empty means {}, null means default, 2.0 is 2."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from nats_backpressure.protocol.values import EventType, Priority

Limit = Annotated[int, Meta(ge=1, le=1000, description="How many to return at most.")]
Moment = Annotated[datetime, Meta(tz=True)]
"""RFC 3339, in any zone that is named."""


MOST_MESSAGES = 10_000
"""Messages that one question of a consumer may ask for."""
MOST_COUNTED = 1_000_000_000
"""Messages that an asker may say it holds, lost or gives back: more than any can."""
LONGEST_DELAY_MS = 1_000_000_000
"""Milliseconds (11 days) that a delay lasts at most; a longer one is as long."""
MOST_DUE = 32
"""Entries of `due` in one question; an asker sums up those that come back at about the same time."""
MOST_DELIVERIES = 15
"""Deliveries of a message that are told apart; more count as so many."""
MOST_ATTEMPTS = 1000
"""The highest attempt of a caller that a question may name."""


class GatewayRequest(Struct, frozen=True):
    """The payload of `decide.gateway`."""

    attempt: Annotated[
        int, Meta(ge=1, le=MOST_ATTEMPTS, description="Which attempt of the caller this is, for its delay.")
    ] = 1
    priority: Annotated[
        Priority, Meta(description="`critical` is always admitted; the low ones are shed first in adaptive mode.")
    ] = "normal"
    preview: Annotated[
        bool, Meta(description="For people who look: the answer is not counted, and what it grants is not reserved.")
    ] = False


class Due(Struct, frozen=True, omit_defaults=True):
    """Messages that come back at the same time."""

    n: Annotated[int, Meta(ge=0, le=MOST_COUNTED, description="How many.")]
    delay_ms: Annotated[
        Annotated[int, Meta(ge=0, le=LONGEST_DELAY_MS)] | None,
        Meta(
            description="Milliseconds from now until the delay that they were returned with is over. null for dropped "
            "ones: they come back after the ack wait."
        ),
    ] = None
    deliveries: Annotated[
        int,
        Meta(
            ge=1,
            le=MOST_COUNTED,
            description="How often they were delivered, 15 for more: with `backoff` each time has another ack wait.",
        ),
    ] = 1


class ConsumerRequest(Struct, frozen=True):
    """The payload of `decide.consumer`."""

    max_messages: Annotated[
        int, Meta(ge=1, le=MOST_MESSAGES, description="How many messages the consumer would pull.")
    ] = 100
    stream: Annotated[str | None, Meta(description="The stream of the consumer, where several match.")] = None
    consumer: Annotated[str | None, Meta(description="The name of the consumer, where several match.")] = None
    unused: Annotated[
        int,
        Meta(
            ge=0, le=MOST_COUNTED, description="How many messages of the last grant were not pulled and are given back."
        ),
    ] = 0
    held: Annotated[
        Annotated[int, Meta(ge=0, le=MOST_COUNTED)] | None,
        Meta(
            description="How many messages the asker (the reply subject without its last token) has pulled and not yet "
            "acknowledged. One that reports it each time is granted an equal part, and waits for no reading."
        ),
    ] = None
    lost: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_COUNTED,
            description="How many messages the asker holds no more since its last question though they are not "
            "acknowledged: dropped, or returned with a delay.",
        ),
    ] = 0
    due: Annotated[
        Annotated[tuple[Due, ...], Meta(max_length=MOST_DUE)] | None,
        Meta(
            description="When those in `lost` come back; any others do after the consumer's longest ack wait. Once "
            "they are due, as many are granted also where they fill the mark: only a pull makes the server deliver "
            "them again. Without this field that takes some seconds without an ack.",
        ),
    ] = None
    earlier: Annotated[
        tuple[Due, ...],
        Meta(
            max_length=MOST_DUE,
            description="Those that were returned before the last question and whose delay is not over yet: for a "
            "sidecar that started since. One that has heard `due` of the asker leaves this out, so send it with each "
            "`due`.",
        ),
    ] = ()
    ahead: Annotated[
        int,
        Meta(
            ge=0,
            le=MOST_COUNTED,
            description="How many of those in `held` the server will have counted as acknowledged before the asker "
            "pulls: it may ask while it still works on its last one.",
        ),
    ] = 0
    leaving: Annotated[
        bool,
        Meta(
            description="The asker asks no more: nothing is granted, what it was granted is given back, and its part "
            "goes to the others, or to one that takes its place. Not counted."
        ),
    ] = False
    preview: Annotated[
        bool, Meta(description="For people who look: the answer is not counted, and what it grants is not reserved.")
    ] = False


class ListRequest(Struct, frozen=True):
    """The payload of `get.status` without a subject."""

    offset: Annotated[int, Meta(ge=0, description="How many subjects to leave out.")] = 0
    limit: Limit = 100


class EventsRequest(Struct, frozen=True):
    """The payload of `get.events`. `since` and `until` are included.

    To read page by page, ask again with the time of the last event as `until` and drop the ids that are already there:
    several events may have the same time.
    """

    type: Annotated[EventType | None, Meta(description="Only events of this type.")] = None
    since: Annotated[Moment | None, Meta(description="Only from then on. Default: 24 hours ago.")] = None
    until: Annotated[Moment | None, Meta(description="Only until then.")] = None
    limit: Limit = 100


class HistoryRequest(Struct, frozen=True):
    """The payload of `get.history`."""

    limit: Limit = 100


class AliasRequest(Struct, frozen=True):
    """The payload of the status alias."""

    subject: Annotated[str, Meta(min_length=1, max_length=1024, description="The subject that is asked about.")]


class NoRequest(Struct, frozen=True):
    """The request of an endpoint without parameters."""


class BadRequest(ValueError):
    """A request that cannot be read; the text names the mistake and its place."""


class RequestRefused(Exception):
    """A request without an answer: the code of the service error, and what is wrong."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


R = TypeVar("R")


def as_object(payload: bytes) -> dict[str, Any]:
    """The object in a payload; an empty payload is an empty one. Raises BadRequest."""
    if not payload:
        return {}
    try:
        document = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the payload is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise BadRequest(f"the payload must be an object, not {type(document).__name__}")
    return document


def parse(payload: bytes, kind: type[R]) -> R:
    """The request in a payload; `dict` is any object as it is. Raises BadRequest."""
    fields = as_object(payload)
    if kind is not dict:
        fields = {key: _whole(value) for key, value in fields.items() if value is not None}
    try:
        return msgspec.convert(fields, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None


def _whole(value: Any) -> Any:
    """2.0 as 2: JSON Schema knows no difference, and some languages write every number with a fraction."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
