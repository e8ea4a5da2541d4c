"""Replies: where one may go, and how large it may be. We publish them with our own rights, on our own connection."""

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
"""Lists of replies that say `truncated`."""


def reply_allowed(reply: str, prefixes: Sequence[str] = ()) -> bool:
    """Whether `reply` is an inbox: `_INBOX` or `_INBOX_*`, a service import `_R_`, or one of `prefixes`, by tokens."""
    tokens = reply.split(".")
    if any(t in ("", "*", ">") or not t.isprintable() or " " in t for t in tokens):
        return False
    if tokens[0] == "_GR_":  # a gateway puts itself, cluster and server in front of the asker's own inbox
        tokens = tokens[3:]
    if len(tokens) < 2:
        return False
    if tokens[0] in ("_INBOX", "_R_") or tokens[0].startswith("_INBOX_"):
        return True
    return any(tokens[: len(own)] == own for own in (prefix.rstrip(".").split(".") for prefix in prefixes))


def fitted(found: Any, max_payload: int) -> bytes | None:
    """The answer as JSON, cut at the last whole element where it would be too large; None if even that is."""
    ceiling = min(max_payload, LARGEST_REPLY)
    limit = max(ceiling - MARGIN, ceiling // 2)
    if isinstance(found, Struct):
        found = _within(found, limit)
    for attempt in (found, *_shorter(found)):
        if len(body := msgspec.json.encode(attempt)) <= limit:
            return body
    return None


def _within(found: Any, limit: int) -> Any:
    """A list that is told as cut, cut to what fits; anything else as it is."""
    fields = set(found.__struct_fields__)
    if {"subjects", "offset", "total"} <= fields:
        return _page_within(found, limit)
    if "truncated" not in fields:
        return found
    for name in fields & CUT:
        elements = getattr(found, name)
        kept = _fitting(elements, limit - len(msgspec.json.encode(replace(found, **{name: (), "truncated": True}))))
        if kept < len(elements):
            return replace(found, **{name: elements[:kept], "truncated": True})
    return found


def _fitting(elements: Sequence[Any], room: int) -> int:
    """How many of them fit, with a comma each."""
    sizes = accumulate(len(msgspec.json.encode(element)) + 1 for element in elements)
    return sum(1 for _ in takewhile(lambda size: size <= room, sizes))


def _page_within(page: Any, limit: int) -> Any:
    """As many subjects as fit; `next_offset` says where to go on. A first one too large by itself is shortened."""
    room = limit - 200  # for the page's own fields
    kept = _fitting(page.subjects, room)
    if kept == len(page.subjects):
        return page
    shown = page.subjects[:kept]
    if kept == 0:
        shown = tuple(s for s in _shorter(page.subjects[0]) if len(msgspec.json.encode(s)) <= room)[:1]
    end = page.offset + max(1, len(shown))  # always onwards, or a reader of pages would turn in a circle
    return replace(page, subjects=shown, next_offset=end if end < page.total else None)


def _shorter(found: Any) -> Iterator[Any]:
    """The same answer with ever fewer elements: its consumers, or what is wrong with a policy."""
    if isinstance(found, Struct):
        if "consumers" in found.__struct_fields__:
            for kept in _halved(found.consumers):  # type: ignore[attr-defined]
                yield replace(found, consumers=kept)
    elif isinstance(found, dict):
        for key in ("consumers", "errors"):
            for kept in _halved(found.get(key) or ()):
                yield {**found, key: kept, "truncated": True}


def _halved(elements: Sequence[Any]) -> Iterator[Sequence[Any]]:
    n = len(elements)
    while n:
        n //= 2
        yield elements[:n]
