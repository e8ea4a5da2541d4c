"""EventDeduplicator: passes each event to a function once, although core NATS may deliver it twice.

Admission does not need events.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from nats_backpressure.client.newest import put_newest
from nats_backpressure.client.stats import OnceLogger, Stats, log

Event = dict[str, Any]
"""An Event of the protocol; it may have more fields."""
EventHandler = Callable[[Event], Awaitable[None] | None]
"""A function or a coroutine function."""

MAX_SUBJECTS = 10_000
"""Subjects whose last event is remembered; the one without an event for longest makes room."""
MAX_EPOCHS = 4
"""Epochs of a subject whose last `seq` is remembered; the one without an event for longest makes room."""


class EventDeduplicator:
    """Drops each event whose (epoch, seq) it has seen or passed, and passes on the others."""

    def __init__(self, handler: EventHandler, stats: Stats, logger: OnceLogger) -> None:
        self._handler, self._stats, self._logger = handler, stats, logger
        self._last_seqs: dict[str, dict[str, int]] = {}
        """By subject and epoch."""

    async def receive(self, data: bytes) -> None:
        """Never raises, whatever arrives and whatever the handler does; a coroutine is awaited."""
        event = _decode(data)
        if event is None or not self._is_new(event):
            self._stats.count("events_dropped")
            return
        self._stats.count("events", event["subject"])
        try:
            if (handling := self._handler(event)) is not None:
                await handling
        except Exception:
            self._logger.warn("on_event", "", "the function for events raised; it is still called for the next ones")
            log.debug("the function for events raised", exc_info=True)

    def _is_new(self, event: Event) -> bool:
        subject, epoch = event["subject"], event["epoch"]
        seq: int = event["seq"]
        epochs = self._last_seqs.get(subject, {})
        last = epochs.get(epoch, -1)
        put_newest(self._last_seqs, subject, epochs, MAX_SUBJECTS)
        put_newest(epochs, epoch, max(last, seq), MAX_EPOCHS)
        return seq > last


def _decode(data: bytes) -> Event | None:
    try:
        event = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(event, dict):
        return None
    named = isinstance(event.get("subject"), str) and isinstance(event.get("epoch"), str)
    return event if named and isinstance(event.get("seq"), int) else None
