"""What losses depend on in a sample and a look: whether two of them are the same in it, or count the same messages."""

from __future__ import annotations

from nats_backpressure.core.model.reading import Account
from nats_backpressure.core.model.samples import Retention, Sample, StreamLook
from nats_backpressure.core.signals.incarnations import mark, marks_match


def kind_of(sample: Sample, look: StreamLook) -> int:
    """See `Account.kind`."""
    retention = look.retention or Retention()
    replaced = f"{retention.policy} {retention.replaces and retention.per_subject} {retention.rollup}"
    return mark(sample.created, look.created, replaced, *sorted(sample.config.filters))


def fits(stored: Account, sample: Sample, look: StreamLook, kind: int) -> bool:
    """Whether a stored account can be of the same stream and consumer, earlier."""
    return (
        marks_match(stored.kind, kind)
        and stored.place <= sample.delivered_stream
        and stored.given <= sample.delivered_consumer
        and stored.last <= look.last_seq
    )


def is_same_kind(last: Sample, sample: Sample, before: StreamLook, look: StreamLook) -> bool:
    """Whether nothing changed that `kind_of` and `gets_whole_stream` depend on."""
    return (
        sample.created == last.created
        and sample.config == last.config
        and look.created == before.created
        and look.subjects == before.subjects
        and look.retention == before.retention
    )


def is_same_sample(last: Sample, sample: Sample) -> bool:
    """Whether nothing of the consumer moved that loss depends on."""
    return (
        sample.pending == last.pending
        and sample.delivered_consumer == last.delivered_consumer
        and sample.delivered_stream == last.delivered_stream
        and sample.config.filters == last.config.filters
    )


def is_same_look(before: StreamLook, look: StreamLook) -> bool:
    """Whether a look shows nothing new that loss depends on."""
    return (
        look.first_seq == before.first_seq
        and look.last_seq == before.last_seq
        and look.messages == before.messages
        and look.retention == before.retention
    )
