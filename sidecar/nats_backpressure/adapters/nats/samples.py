"""Makes what the core reads, `Sample` and `StreamLook`, of the server's replies about consumers and streams."""

from __future__ import annotations

from datetime import datetime

from nats_backpressure.adapters.nats.api_types import (
    ConsumerInfo,
    ConsumerInfoConfig,
    Mirror,
    StreamInfo,
    StreamInfoConfig,
    StreamState,
)
from nats_backpressure.core.model.samples import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.protocol.requests import MOST_DELIVERIES
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey

METADATA = ("backpressure.", "io.nats.monitor.")
"""Prefixes of the metadata keys that set policies."""
METADATA_LIMIT, METADATA_LENGTH = 64, 1024
"""Keys, and characters of a key or value; anything beyond is left out."""


def stream_look(stream: StreamInfo[StreamInfoConfig]) -> StreamLook:
    """What the core reads of a stream."""
    config, state = stream.config, stream.state
    return StreamLook(
        name=config.name,
        created=stream.created,
        first_seq=state.first_seq,
        last_seq=state.last_seq,
        messages=state.messages,
        subjects=config.subjects or _mirrored(config.mirror),
        at_limit=config.discard == "old" and _full(config, state),
        origin=_origin(config.mirror) if config.mirror else None,
        fill=_fill(config, state),
        oldest_age=_since(state.first_ts, stream.ts) if state.messages else None,
        retention=_retention(config),
        consumers=state.consumer_count,
    )


def _mirrored(mirror: Mirror | None) -> tuple[str, ...]:
    """The subjects of a mirror of a part of its origin; none where it has all of them, or only the server can tell."""
    if mirror is None:
        return ()
    if mirror.filter_subject:
        return (mirror.filter_subject,)
    subjects = tuple(one.dest or one.src for one in mirror.subject_transforms or ())
    return () if any("$" in subject or "{{" in subject for subject in subjects) else subjects


def _origin(mirror: Mirror) -> str:
    """The stream that a mirror mirrors. One elsewhere, or of which the mirror changes the subjects, is none that the
    list of streams shows: no name of a stream has a space."""
    if mirror.external is None and not any(one.dest for one in mirror.subject_transforms or ()):
        return mirror.name
    return f"{mirror.name} {mirror.external.api if mirror.external else 'with other subjects'}"


def _retention(config: StreamInfoConfig) -> Retention:
    return Retention(
        policy=config.retention,
        max_age=config.max_age / 1e9,
        max_msgs=max(0, config.max_msgs),
        max_bytes=max(0, config.max_bytes),
        discards_old=config.discard == "old",
        per_subject=max(0, config.max_msgs_per_subject),
        rollup=config.allow_rollup_hdrs,
        life_times=config.allow_msg_ttl,
        mixed=bool(config.sources) or config.subject_transform is not None,
    )


def _fill(config: StreamInfoConfig, state: StreamState) -> float | None:
    """The largest share of its limits in use. The limit per subject does not count: streams use it by being at it."""
    shares = [
        held / limit
        for held, limit in ((state.messages, config.max_msgs), (state.bytes, config.max_bytes))
        if limit > 0
    ]
    return min(1.0, max(shares)) if shares else None


def _full(config: StreamInfoConfig, state: StreamState) -> bool:
    """Whether the next message removes an old one that it does not replace. Near the limit in bytes it may be larger
    than the free room."""
    return 0 < config.max_msgs <= state.messages or 0 < config.max_bytes * 0.95 <= state.bytes


def policy_metadata(metadata: dict[str, str]) -> tuple[tuple[tuple[str, str], ...], int]:
    """The pairs that set policies, sorted by key, within bounds; and how many were left out."""
    ours = [pair for pair in metadata.items() if pair[0].startswith(METADATA)]
    if not ours:  # nearly always: the server has keys of its own
        return (), 0
    short = [pair for pair in sorted(ours) if max(map(len, pair)) <= METADATA_LENGTH][:METADATA_LIMIT]
    return tuple(short), len(ours) - len(short)


def sample(stream: str, info: ConsumerInfo, at: Now, metadata: tuple[tuple[str, str], ...] = ()) -> Sample:
    """What the core reads of a consumer; `at` is when the reply came."""
    return Sample(
        key=ConsumerKey(stream, info.name),
        created=info.created,
        config=_consumer_config(info.config, metadata),
        at=at,
        pending=info.num_pending,
        inflight=info.num_ack_pending,
        redelivered=info.num_redelivered,
        waiting=info.num_waiting,
        delivered_stream=info.delivered.stream_seq,
        delivered_consumer=info.delivered.consumer_seq,
        floor_stream=info.ack_floor.stream_seq,
        floor_consumer=info.ack_floor.consumer_seq,
        since_delivery=_since(info.delivered.last_active, info.ts),
        since_ack=_since(info.ack_floor.last_active, info.ts),
        paused=info.paused,
        bound=info.push_bound or not info.config.deliver_subject,
    )


def _consumer_config(config: ConsumerInfoConfig, metadata: tuple[tuple[str, str], ...]) -> ConsumerConfig:
    backoff = _backoff(config.backoff) if config.backoff else ()
    return ConsumerConfig(
        durable=bool(config.durable_name),
        ack_policy=config.ack_policy,
        filters=config.filter_subjects or ((config.filter_subject,) if config.filter_subject else ()),
        max_ack_pending=config.max_ack_pending if config.max_ack_pending > 0 else None,
        ack_wait=max(backoff) if backoff else config.ack_wait / 1e9 if config.ack_wait else 30.0,
        backoff=backoff,
        push=bool(config.deliver_subject),
        priority_groups=bool(config.priority_groups),
        rate_limited=config.rate_limit_bps > 0,
        original_replay=config.replay_policy == "original",
        last_per_subject=config.deliver_policy == "last_per_subject",
        sampled=_is_sampled(config.sample_freq),
        metadata=metadata,
    )


def _backoff(waits: tuple[int, ...]) -> tuple[float, ...]:
    """In seconds, of MOST_DELIVERIES deliveries; the last one is the longest of all later ones."""
    last = MOST_DELIVERIES - 1
    return tuple(wait / 1e9 for wait in (*waits[:last], *([max(waits[last:])] if len(waits) > last else [])))


def _is_sampled(frequency: str) -> bool:
    """Whether a `sample_freq` (percent: "30", "30%") lets the server publish ack metrics."""
    percent = frequency.removesuffix("%")
    return percent.isdecimal() and percent.strip("0") != ""


def _since(then: datetime | None, now: datetime | None) -> float | None:
    """Seconds on the server's clock; None where the reply has no time (2.9), or it never happened (year 1)."""
    if then is None or now is None or then.year <= 1:
        return None
    return max(0.0, (now - then).total_seconds())
