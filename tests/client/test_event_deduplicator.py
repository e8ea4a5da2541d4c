"""Each event is passed on once, although it may be delivered twice."""

from __future__ import annotations

import asyncio
import json

from nats_backpressure.client.event_deduplicator import MAX_EPOCHS, MAX_SUBJECTS, Event, EventDeduplicator
from nats_backpressure.client.stats import OnceLogger, Stats


def event(epoch: str, seq: object, subject: str = "orders") -> bytes:
    return json.dumps({"subject": subject, "epoch": epoch, "seq": seq}).encode()


async def test_an_event_that_was_seen_or_passed_is_dropped_and_a_handler_that_raises_is_still_called() -> None:
    received: list[tuple[str, int]] = []

    def handler(event: Event) -> None:
        received.append((event["epoch"], event["seq"]))
        raise RuntimeError("the gateway's own bug")

    stats = Stats()
    events = EventDeduplicator(handler, stats, OnceLogger())
    for epoch, seq in ("a1", "a2", "a2", "a1", "b3", "a2", "a3", "b3", "b4"):
        await events.receive(event(epoch, int(seq)))
    assert received == [("a", 1), ("a", 2), ("b", 3), ("a", 3), ("b", 4)]
    assert (stats.events, stats.events_dropped) == (5, 4)


async def test_anything_but_an_event_is_dropped() -> None:
    stats = Stats()
    events = EventDeduplicator(lambda _: None, stats, OnceLogger())
    for data in (b"", b"[]", b"[" * 5000, b'{"subject": 1}', event("e", "1")):
        await events.receive(data)
    assert (stats.events, stats.events_dropped) == (0, 5)


async def test_what_is_remembered_is_bounded() -> None:
    stats = Stats()
    events = EventDeduplicator(lambda _: None, stats, OnceLogger())
    for n in range(MAX_SUBJECTS + 5):
        await events.receive(event("e", 1, f"s{n}"))
    for n in range(MAX_EPOCHS + 5):
        await events.receive(event(f"e{n}", 1))
    assert stats.events_dropped == 0
    await events.receive(event("e", 2, "s5"))
    await events.receive(event("e", 1, "one more"))
    await events.receive(event("e", 2, "s5"))
    assert stats.events_dropped == 1, "the one in use is remembered"
    assert len(events._last_seqs) == MAX_SUBJECTS and len(events._last_seqs["orders"]) == MAX_EPOCHS


async def test_a_coroutine_is_awaited_before_the_next_event() -> None:
    received: list[int] = []

    async def handler(event: Event) -> None:
        await asyncio.sleep(0)
        received.append(event["seq"])
        raise RuntimeError("the gateway's own bug")

    events = EventDeduplicator(handler, Stats(), OnceLogger())
    for seq in (1, 2, 3):
        await events.receive(event("e", seq))
        assert received[-1] == seq
