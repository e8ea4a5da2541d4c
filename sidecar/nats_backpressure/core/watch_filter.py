"""Decides which streams and consumers are watched, and under which subjects a consumer counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from nats_backpressure.core.model.samples import ConsumerConfig, StreamLook
from nats_backpressure.protocol.patterns import encode, glob
from nats_backpressure.protocol.values import ConsumerKey

SUBJECTS_LIMIT = 8
"""A consumer of more subjects is not watched."""
LONGEST_KEY = 1024
"""Bytes of an encoded subject; a longer one is not watched."""


class WatchEntry(Struct, frozen=True):
    """One entry of `watch`: globs match only streams and consumers that count; an exact name matches any."""

    stream: str
    consumers: tuple[str, ...] = ("*",)


def is_stream_watched(stream: str, watch: Sequence[WatchEntry], ours: Collection[str]) -> bool:
    """Whether a stream is watched; buckets, object stores and our own streams only by their exact name."""
    special = stream in ours or stream.startswith(("KV_", "OBJ_"))
    return any(entry.stream == stream or (not special and glob(entry.stream, stream)) for entry in watch)


def is_consumer_watched(
    key: ConsumerKey, config: ConsumerConfig, watch: Sequence[WatchEntry], ours: Collection[str]
) -> bool:
    """Whether a consumer is watched: if it is durable and acknowledges, or is named exactly."""
    counts = config.durable and config.ack_policy in ("explicit", "all")
    for entry in watch:
        named = key.consumer in entry.consumers
        taken = named or (counts and any(glob(c, key.consumer) for c in entry.consumers))
        if taken and is_stream_watched(key.stream, [entry], ours):
            return True
    return False


def is_name_watched(key: ConsumerKey, watch: Sequence[WatchEntry], ours: Collection[str]) -> bool:
    """Whether a consumer of this name may be watched at all, whatever its configuration."""
    return any(
        is_stream_watched(key.stream, [entry], ours) and any(glob(name, key.consumer) for name in entry.consumers)
        for entry in watch
    )


def why_left_out(key: ConsumerKey, config: ConsumerConfig, watch: Sequence[WatchEntry], ours: Collection[str]) -> str:
    """Why a consumer counts under no subject, in a word or two."""
    if not is_name_watched(key, watch, ours):
        return "not in watch"
    if not is_consumer_watched(key, config, watch, ours):
        return "without acks" if config.durable else "ephemeral"
    return "subjects"


def counted_subjects(
    key: ConsumerKey,
    config: ConsumerConfig,
    stream: tuple[str, ...],
    watch: Sequence[WatchEntry],
    ours: Collection[str],
) -> tuple[str, ...] | str:
    """The subjects under which a consumer counts: none if it is not watched, or the reason why it cannot be."""
    return consumer_subjects(config, stream) if is_consumer_watched(key, config, watch, ours) else ()


def subjects_by_stream(
    known: Mapping[str, tuple[str, ...]], looks: Sequence[StreamLook], complete: bool
) -> dict[str, tuple[str, ...]]:
    """The subjects of every stream, after another list. What that does not show stays as it is known while the list is
    not complete, and for a mirror whose origin is gone: its messages are still those."""
    origins = {look.origin for look in looks}
    not_shown = {name: subjects for name, subjects in known.items() if not complete or name in origins}
    return not_shown | {look.name: look.subjects for look in looks}


def consumer_subjects(config: ConsumerConfig, stream: tuple[str, ...]) -> tuple[str, ...] | str:
    """The subjects of a consumer, or the reason why it cannot be watched; `stream`: the subjects of its stream."""
    names = config.filters or stream
    if not names:
        return "it has no filter, and its stream shows no subjects (it mirrors one elsewhere, or only has sources)"
    if len(names) > SUBJECTS_LIMIT:
        return f"it has {len(names)} subjects, more than {SUBJECTS_LIMIT}"
    if any(len(encode(subject)) > LONGEST_KEY for subject in names):
        return f"one of its subjects is longer than {LONGEST_KEY} bytes when encoded"
    return tuple(names)
