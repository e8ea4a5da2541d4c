"""ListReader: reads a list of streams or consumers to its end, page by page.

A malformed item is left out and counted, and the rest of its page is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct

from nats_backpressure.adapters.nats.api import UNREADABLE
from nats_backpressure.adapters.nats.api_types import ListPage, NoLeader
from nats_backpressure.adapters.nats.observer_requests import Answer, ObserverRequests
from nats_backpressure.protocol.subjects import NAME
from nats_backpressure.protocol.timestamps import Now

PAGES_LIMIT = 400
"""Pages of one list, of 256 members each; further ones are not read, and the reading is incomplete."""

T = TypeVar("T")
R = TypeVar("R", covariant=True)
_ITEMS = msgspec.json.Decoder(ListPage[Raw])


class Listed(Struct, Generic[T]):
    """All pages of one list."""

    items: dict[str, tuple[T, Now]]
    missing: set[str]
    malformed: set[str]
    """Names of the malformed items."""
    unnamed: int
    """Malformed items whose name cannot be read."""
    complete: bool
    seconds: float
    """How long the requests took."""
    trip: float = 0.0
    """The seconds of them that the link needed."""
    pages: int = 0


class ItemReader(Protocol[R]):
    """Reads an item of a list."""

    def read(self, item: Raw) -> R:
        """Raises what a decoder raises, and NoLeader."""


class ListReader:
    def __init__(self, requests: ObserverRequests) -> None:
        self._requests = requests

    async def read(
        self, op: str, kind: ItemReader[T], name_of: Callable[[T], str], first: Answer | None = None
    ) -> Listed[T]:
        """Page after page; a list that changes meanwhile is read to its end, and is incomplete. `first`: the first
        page, where it was read already."""
        listed: Listed[T] = Listed({}, set(), set(), 0, False, 0.0)
        offset, first_total = 0, None
        for listed.pages in range(1, PAGES_LIMIT + 1):
            answer = first or await self._requests.ask(op, b'{"offset":%d}' % offset)
            first = None
            page, items, bad, silent = self._page(kind, answer.data)
            listed.seconds, listed.trip = listed.seconds + answer.took, listed.trip + answer.trip
            for item in items:
                if NAME.fullmatch(name_of(item)):
                    listed.items[name_of(item)] = (item, answer.at)
                else:
                    bad.append(name_of(item))
                    self._requests.dropped("name_unusable")
            listed.malformed |= {name for name in bad if name is not None}
            listed.unnamed += bad.count(None)
            listed.missing |= {*(page.missing or ()), *(page.offline or ()), *silent}
            first_total = page.total if first_total is None else first_total
            # Not from the number of items: a page lacks missing ones. Never negative: that ends a 2.9.10 server.
            offset += page.limit or len(items) + len(bad) + len(silent)
            if offset >= page.total or not (items or bad or silent or page.missing or page.offline):
                seen = len(listed.items.keys() | listed.missing | listed.malformed) + listed.unnamed
                listed.complete = seen == page.total == first_total
                break
        return listed

    def _page(self, kind: ItemReader[T], data: bytes) -> tuple[ListPage[Raw], list[T], list[str | None], list[str]]:
        """A page, its items, the names of malformed ones (None if the name cannot be read either), and those of which
        no leader says anything."""
        raw = self._requests.decoded(_ITEMS, data)
        items: list[T] = []
        bad: list[str | None] = []
        silent: list[str] = []
        for item in raw.streams or raw.consumers or []:
            try:
                items.append(kind.read(item))
            except UNREADABLE:
                self._requests.dropped("consumer_info_malformed")
                bad.append(_name(item))
            except NoLeader as error:
                silent.append(error.name)
        return raw, items, bad, silent


class _Named(Struct, frozen=True):
    name: str = ""


class _Nameable(_Named, frozen=True):
    config: _Named = _Named()


def _name(item: Raw) -> str | None:
    """The name of a stream or consumer of which nothing else can be read."""
    try:
        named = msgspec.json.decode(item, type=_Nameable)
    except UNREADABLE:
        return None
    return named.name or named.config.name or None
