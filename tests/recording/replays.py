"""Replays of recordings that a test writes, and the events they report."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.format import (
    Line,
)
from nats_backpressure.recording.replay import Replay
from tests.support.policies import entry
from tests.support.recordings import WALL, beginning, observed, reading

KEY = ConsumerKey("ORDERS", "worker")


def evaluated(
    lines: Iterable[Line], *policies: PolicyEntry, only: str | None = None, **settings: Any
) -> list[SubjectEvent]:
    events: list[SubjectEvent] = []
    quiet = entry(">", alert_on_active=False)
    replay = Replay(Settings(policies=policies or (quiet,), **settings), events.append, only)
    for thing in observed(lines):
        replay.process(thing)
    return events


def steps(events: Iterable[SubjectEvent]) -> list[tuple[float, str, str]]:
    """When (in seconds since the beginning), what, and where to."""
    return [(round(event.at - WALL, 3), event.type.value, event.now.word) for event in events]


def burst() -> list[Line]:
    """One second of calm, two of a queue and a full worker, then calm; a reading every 0.1 s."""
    events = [*beginning()]
    for n in range(60):
        at = n / 10
        busy = 1 <= at < 3
        events += reading(at, 2000, 600, 0) if busy else reading(at, 0, 0, 2600 if at >= 3 else 0)
    return events
