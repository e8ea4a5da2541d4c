"""Tells messages that a stream dropped by itself from those that an operator purged or deleted: yes/no checks."""

from __future__ import annotations

from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.protocol.patterns import covers_all

AGE_SLACK = 2.0
"""Seconds by which two looks may be farther apart than the samples before them."""


def may_drop(before: StreamLook | None, look: StreamLook, elapsed: float | None) -> bool:
    """Whether the stream may have dropped messages by itself between two looks, `elapsed` seconds apart; with only one,
    whether it ever does. Where it cannot have, what is missing was deleted or purged."""
    now = look.retention
    if now is None:
        return True
    if before is None or elapsed is None:
        return now.drops
    if now != before.retention or now.life_times:
        return True
    oldest = before.oldest_age
    if now.max_age and (oldest is None or oldest + elapsed + AGE_SLACK >= now.max_age):
        return True
    arrived = look.last_seq - before.last_seq
    if arrived <= 0 or not now.discards_old:
        return False
    return now.max_bytes > 0 or 0 < now.max_msgs < before.messages + arrived


def was_purged(fell: int, moved: int, given: int, drops: bool, sample: Sample, look: StreamLook) -> bool:
    """The server moves a consumer past purged messages, and leaves it where it is when messages are dropped. With
    deliveries in the same interval the two look the same; then it is a purge if nothing can have been dropped."""
    if fell <= 0 or moved <= given or sample.delivered_stream < look.first_seq - 1:
        return False
    return given == 0 or not drops


def was_reset(fell: int, moved: int, given: int, place: int, look: StreamLook) -> bool:
    """Whether a consumer was moved past messages that its stream still holds, all from behind its earlier `place` on:
    by CONSUMER.RESET, not by a purge."""
    return fell > 0 and moved > given and not has_holes(look) and look.first_seq - 1 <= place < look.last_seq


def gets_whole_stream(sample: Sample, look: StreamLook) -> bool:
    """Whether the consumer gets every message of the stream, and messages leave it only by being dropped."""
    retention = look.retention
    if retention is not None and (retention.policy != "limits" or retention.replaces):
        return False
    if sample.config.last_per_subject:
        return False
    mixed = retention is not None and retention.mixed
    return not sample.config.filters or (not mixed and covers_all(sample.config.filters, look.subjects))


def owns_the_rest(sample: Sample, before: StreamLook | None, look: StreamLook, since: int) -> bool:
    """Whether all messages behind the place of the consumer were surely its own, given the looks before and after the
    sample. The stream may hold messages of subjects that it had earlier, none behind the sequence `since`."""
    place = max(sample.delivered_stream, before.first_seq - 1 if before is not None else 0)
    return place >= since or sample.pending >= look.last_seq - place


def has_holes(look: StreamLook) -> bool:
    """Whether messages are missing between the first and the last one: deleted, purged by subject, or never there."""
    return look.messages > 0 and look.messages != look.last_seq - look.first_seq + 1


def has_life_times(look: StreamLook) -> bool:
    """Whether messages may be dropped from anywhere in the stream."""
    return look.retention is not None and look.retention.life_times


def removed_by_operator(before: StreamLook, look: StreamLook) -> int:
    """How many messages an operator deleted between two looks, if the stream dropped none and acks remove none."""
    retention = look.retention
    if retention is None or retention.policy != "limits" or retention.replaces:
        return 0
    return max(0, before.messages + look.last_seq - before.last_seq - look.messages)
