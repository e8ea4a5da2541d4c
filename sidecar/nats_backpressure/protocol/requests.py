"""What may be asked, and how it is read: an object or nothing, null means default, unknown fields are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from nats_backpressure.protocol.values import EventType

Limit = Annotated[int, Meta(ge=1, le=1000)]
Moment = Annotated[datetime, Meta(tz=True)]
"""RFC 3339, in any zone that is named."""


class GatewayRequest(Struct, frozen=True):
    attempt: Annotated[int, Meta(ge=1, le=1000)] = 1
    priority: Literal["low", "normal", "high", "critical"] = "normal"


class ConsumerRequest(Struct, frozen=True):
    max_messages: Annotated[int, Meta(ge=1, le=10_000)] = 100
    stream: str | None = None
    consumer: str | None = None


class ListRequest(Struct, frozen=True):
    offset: Annotated[int, Meta(ge=0)] = 0
    limit: Limit = 100


class EventsRequest(Struct, frozen=True):
    """`since` and `until` are included: a reader of pages asks on with the time of the last event as `until`, and drops
    the ids it has, since several events may be of one moment."""

    type: EventType | None = None
    since: Moment | None = None
    """24 hours ago, if it is not given."""
    until: Moment | None = None
    limit: Limit = 100


class HistoryRequest(Struct, frozen=True):
    limit: Limit = 100


class AliasRequest(Struct, frozen=True):
    subject: Annotated[str, Meta(min_length=1, max_length=1024)]


class NoRequest(Struct, frozen=True):
    """The request of an endpoint without parameters."""


class BadRequest(ValueError):
    """A request that cannot be read; the text says what is wrong, and where."""


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
        found = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the payload is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadRequest(f"the payload must be an object, not {type(found).__name__}")
    return found


def parse(payload: bytes, kind: type[R]) -> R:
    """The request in a payload; `dict` is any object as it is. Raises BadRequest."""
    fields = as_object(payload)
    if kind is not dict:
        fields = {key: value for key, value in fields.items() if value is not None}
    try:
        return msgspec.convert(fields, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None
