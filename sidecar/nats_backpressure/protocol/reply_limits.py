"""To which subjects a reply may be sent, and how a reply that is too large is cut.

We publish replies with our own rights, on our own connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, takewhile
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

LARGEST_REPLY = 1024 * 1024
MARGIN = 4 * 1024
"""Bytes kept free below the server's max_payload: a reply above it would cost us the connection."""
CUT = frozenset({"events", "transitions", "alerts"})
"""Lists of replies that have a field `truncated`."""


def reply_allowed(reply: str, prefixes: Sequence[str] = ()) -> bool:
    """Whether `reply` is an inbox: `_INBOX` or `_INBOX_*`, a service import `_R_`, or one of `prefixes`, by tokens."""
    tokens = _tokens(reply)
    return len(tokens) > 1 and _names_inbox(tokens, prefixes)


def reply_prefix_allowed(prefix: str, prefixes: Sequence[str] = ()) -> bool:
    """Whether `reply_allowed` is true of everything that has one token more, whatever it is."""
    tokens = _tokens(prefix)
    return len(tokens) > 0 and _names_inbox(tokens, prefixes)


def _tokens(reply: str) -> list[str]:
    """The tokens of the client's own inbox; none if it is no subject that could be published to."""
    tokens = reply.split(".")
    if any(t in ("", "*", ">") or not t.isprintable() or " " in t for t in tokens):
        return []
    # A gateway puts itself, cluster and server in front.
    return tokens[3:] if tokens[0] == "_GR_" else tokens


def _names_inbox(tokens: list[str], prefixes: Sequence[str]) -> bool:
    if tokens[0] in ("_INBOX", "_R_") or tokens[0].startswith("_INBOX_"):
        return True
    return any(tokens[: len(own)] == own for own in (prefix.rstrip(".").split(".") for prefix in prefixes))


def reply_limit(max_payload: int) -> int:
    """Bytes of a reply, at most."""
    ceiling = min(max_payload, LARGEST_REPLY)
    return max(ceiling - MARGIN, ceiling // 2)


def fitted(reply: Any, max_payload: int) -> bytes | None:
    """The reply as JSON, cut at the last whole element if it is too large; None if even that is too large."""
    limit = reply_limit(max_payload)
    if isinstance(reply, Struct):
        reply = _cut(reply, limit)
    for attempt in (reply, *_shorter(reply)):
        if len(body := msgspec.json.encode(attempt)) <= limit:
            return body
    return None


def _cut(reply: Any, limit: int) -> Any:
    """The reply with its list cut to what fits, if it has a page or a list of CUT."""
    fields = set(reply.__struct_fields__)
    if {"subjects", "offset", "total"} <= fields:
        return _cut_page(reply, limit)
    for name in fields & CUT:
        elements = getattr(reply, name)
        room = limit - len(msgspec.json.encode(replace(reply, **{name: (), "truncated": True})))
        n = _fitting(elements, room)
        if n < len(elements):
            return replace(reply, **{name: elements[:n], "truncated": True})
    return reply


def _fitting(elements: Sequence[Any], room: int) -> int:
    """How many of the elements fit, with a comma each."""
    sizes = accumulate(len(msgspec.json.encode(element)) + 1 for element in elements)
    return sum(1 for _ in takewhile(lambda size: size <= room, sizes))


def _cut_page(page: Any, limit: int) -> Any:
    """As many subjects as fit; `next_offset` is where the next page starts. A first one too large is shortened."""
    room = limit - 200  # for the page's own fields
    n = _fitting(page.subjects, room)
    if n == len(page.subjects):
        return page
    shown = page.subjects[:n]
    if n == 0:
        shown = tuple(status for status in _shorter(page.subjects[0]) if len(msgspec.json.encode(status)) <= room)[:1]
    end = page.offset + max(1, len(shown))  # it must always grow, or a client that reads page by page would loop
    return replace(page, subjects=shown, next_offset=end if end < page.total else None)


def _shorter(reply: Any) -> Iterator[Any]:
    """The same reply with ever fewer consumers, or ever fewer mistakes of a policy."""
    fields = getattr(reply, "__struct_fields__", ())
    truncated = {"truncated": True} if "truncated" in fields else {}
    for name in ("consumers", "errors"):
        n = len(getattr(reply, name)) if name in fields else 0
        while n:
            n //= 2
            yield replace(reply, **{name: getattr(reply, name)[:n], **truncated})
