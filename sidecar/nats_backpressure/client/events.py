"""Events as they happen, each once. Admission does not need them: the state bucket is written first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from nats_backpressure.client.stats import OnceLogger, Stats, log

Event = dict[str, Any]
"""An event as the contract has it; it may carry more."""

MOST_SUBJECTS = 10_000
"""Subjects whose last event is remembered; the one remembered longest makes room."""
MOST_EPOCHS = 4
"""Epochs of a subject whose last `seq` is remembered."""


class EventDeduplicator:
    """Hands on each event whose (epoch, seq) it has neither seen nor passed: core NATS may bring one twice."""

    def __init__(self, hand_on: Callable[[Event], None], stats: Stats, voice: OnceLogger) -> None:
        self._hand_on, self._stats, self._voice = hand_on, stats, voice
        self._seen: dict[str, dict[str, int]] = {}

    def hear(self, data: bytes) -> None:
        """Never raises, whatever arrives and whatever the gateway's own function does."""
        event = _event(data)
        if event is None or not self._new(event):
            self._stats.count("events_dropped")
            return
        self._stats.count("events", event["subject"])
        try:
            self._hand_on(event)
        except Exception:
            self._voice.say("on_event", "", "the function for events raised; it goes on being called")
            log.debug("the function for events raised", exc_info=True)

    def _new(self, event: Event) -> bool:
        subject, epoch, seq = event["subject"], event["epoch"], event["seq"]
        epochs = self._seen.setdefault(subject, {})
        if seq <= epochs.get(epoch, -1):
            return False
        epochs[epoch] = seq
        if len(epochs) > MOST_EPOCHS:
            del epochs[next(iter(epochs))]
        if len(self._seen) > MOST_SUBJECTS:
            del self._seen[next(iter(self._seen))]
        return True


def _event(data: bytes) -> Event | None:
    try:
        found = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    texts = isinstance(found.get("subject"), str) and isinstance(found.get("epoch"), str)
    return found if texts and isinstance(found.get("seq"), int) else None
