"""Which consumers are watched, and under which subjects they stand."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from sidecar.core.model import ConsumerConfig, ConsumerKey
from sidecar.core.patterns import encode, glob

SUBJECTS_LIMIT = 8
"""A consumer that stands under more subjects is not watched."""
LONGEST_KEY = 1024
"""Bytes of an encoded subject; a longer one is not watched."""
GONE_AFTER = 1.0
"""Seconds between two readings that both lack a consumer, after which it is gone."""


class Watch(Struct, frozen=True):
    """One entry of `watch`: globs take only what counts, an exact name takes any stream or consumer."""

    stream: str
    consumers: tuple[str, ...] = ("*",)


def stream_chosen(stream: str, watch: Sequence[Watch], ours: Collection[str]) -> bool:
    """Whether a stream is looked into; buckets, object stores and our own only when named exactly."""
    special = stream in ours or stream.startswith(("KV_", "OBJ_"))
    return any(entry.stream == stream or (not special and glob(entry.stream, stream)) for entry in watch)


def consumer_chosen(key: ConsumerKey, config: ConsumerConfig, watch: Sequence[Watch], ours: Collection[str]) -> bool:
    """Whether a consumer counts: durable and acknowledging, unless it is named exactly."""
    counts = config.durable and config.ack_policy in ("explicit", "all")
    for entry in watch:
        named = key.consumer in entry.consumers
        taken = named or (counts and any(glob(c, key.consumer) for c in entry.consumers))
        if taken and stream_chosen(key.stream, [entry], ours):
            return True
    return False


def subjects(config: ConsumerConfig, stream: tuple[str, ...]) -> tuple[str, ...] | str:
    """The subjects a consumer stands under, or why it cannot be watched; `stream` are those of its stream."""
    found = config.filters or stream
    if not found:
        return "it has no filter, and its stream shows no subjects (a mirror whose origin is not visible?)"
    if len(found) > SUBJECTS_LIMIT:
        return f"it stands under {len(found)} subjects, more than {SUBJECTS_LIMIT}"
    if any(len(encode(subject)) > LONGEST_KEY for subject in found):
        return f"one of its subjects is longer than {LONGEST_KEY} bytes when encoded"
    return tuple(found)


def absent(
    since: Mapping[ConsumerKey, float], known: Iterable[ConsumerKey], seen: Collection[ConsumerKey], now: float
) -> tuple[dict[ConsumerKey, float], list[ConsumerKey]]:
    """From when each known consumer has been absent, and which are now gone for sure; give whole readings only."""
    missing = {key: since.get(key, now) for key in known if key not in seen}
    gone = [key for key, first in missing.items() if now - first >= GONE_AFTER]
    return {key: first for key, first in missing.items() if key not in gone}, gone
