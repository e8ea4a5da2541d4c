"""What may be asked, and how it is read: an object or nothing, null means default, unknown fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct


class GatewayRequest(Struct, frozen=True):
    attempt: Annotated[int, Meta(ge=1, le=1000)] = 1
    priority: Literal["low", "normal", "high", "critical"] = "normal"


class ConsumerRequest(Struct, frozen=True):
    max_messages: Annotated[int, Meta(ge=1, le=10_000)] = 100
    stream: str | None = None
    consumer: str | None = None


class ListRequest(Struct, frozen=True):
    offset: Annotated[int, Meta(ge=0)] = 0
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100


class AliasRequest(Struct, frozen=True):
    subject: Annotated[str, Meta(min_length=1, max_length=1024)]


class NoRequest(Struct, frozen=True):
    pass


class BadRequest(ValueError):
    """A request that cannot be read; the text says what is wrong, and where."""


R = TypeVar("R", bound=Struct)


def document(payload: bytes) -> dict[str, Any]:
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
    """The request in a payload. Raises BadRequest."""
    given = {key: value for key, value in document(payload).items() if value is not None}
    try:
        return msgspec.convert(given, kind, strict=True)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None
