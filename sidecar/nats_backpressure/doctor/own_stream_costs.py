"""What it costs while a stream of ours takes nothing, by the stream: nothing that goes on is said to have ended."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from nats_backpressure.doctor.facts import Facts, OwnStream
from nats_backpressure.doctor.right_costs import EVENTS_UNSENT, FILE_ALONE, NOT_STORED
from nats_backpressure.protocol.subjects import Names

ON_DOWN_SERVERS: Final = (
    "its only copy, or most of its copies, are on servers that are down: start them "
    "(`nats server report jetstream` shows which)"
)


def cost_without(facts: Facts, stream: OwnStream) -> str:
    """What does not work until it answers again."""
    if stream.optional:
        return "its policies and overrides cannot be changed; after a start only the policies of the file are in force"
    if stream.name == Names(facts.settings.name).events_stream:
        return f"{EVENTS_UNSENT}; subjects without a stored state get none meanwhile"
    return NOT_STORED


def missing_of(facts: Facts) -> list[OwnStream]:
    """Those of ours that surely do not exist."""
    return [stream for stream in facts.own if not stream.exists and stream.failure is None]


def cost_of_missing(facts: Facts, missing: Iterable[OwnStream]) -> str:
    """What does not work until they are created; states are stored without an events stream."""
    needed = {stream.name for stream in missing if not stream.optional}
    if not needed:
        return FILE_ALONE
    return EVENTS_UNSENT if needed == {Names(facts.settings.name).events_stream} else NOT_STORED


def is_down(facts: Facts, stream: OwnStream) -> bool:
    """Whether the list of streams says that no server answers for it."""
    return stream.name in facts.missing
