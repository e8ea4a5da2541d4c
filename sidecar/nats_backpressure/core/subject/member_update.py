"""How a reading changes one member of a subject: its latches, status, pressure and lost messages."""

from __future__ import annotations

from msgspec.structs import replace

from nats_backpressure.core.model.marks import Marks
from nats_backpressure.core.model.member import (
    CONSUMER_DELETED,
    CONSUMER_RESET,
    DATA_LOSS,
    NO_LATCHES,
    PURGED,
    Latches,
    Member,
)
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.status import latches, thresholds
from nats_backpressure.protocol.values import Status

LOSS_INTERVAL = 10.0
"""Seconds between two reports of one loss that goes on; what is lost in between is added up."""


def with_reading(member: Member, reading: Reading, now: float) -> Member:
    """The member after a newer reading; `now` is monotonic time."""
    member = with_losses(member, reading, now)
    if (cause := _exchanged(member.reading, reading)) is not None:
        member = replace(member, causes=member.causes | {cause})
    account = reading.account if member.lost <= member.lost_reported else member.account
    return evaluated(replace(member, reading=reading, proof=reading.at.mono, account=account))


def _exchanged(before: Reading | None, reading: Reading) -> str | None:
    """What else than work took messages from the consumer's count: it begins at another place of the stream."""
    if before is None or reading.pending >= before.pending:
        return None
    went_back = reading.delivered_consumer < before.delivered_consumer
    if before.made != reading.made:
        # Servers before 2.12 tell one without a durable name as created when they started.
        return CONSUMER_DELETED if reading.durable or went_back else None
    return CONSUMER_RESET if reading.reset or went_back else None


def with_losses(member: Member, reading: Reading, now: float) -> Member:
    """The member with no more of a reading than the losses that it shows."""
    lost = member.lost + reading.lost
    if lost < member.lost_reported and loss_report_due(member, now):
        lost = member.lost_reported  # another replica saw a loss that was not seen here
    causes = member.causes
    if reading.lost or reading.losing:
        causes |= {DATA_LOSS}
    if reading.purged:
        causes |= {PURGED}
    return member if (lost, causes) == (member.lost, member.causes) else replace(member, lost=lost, causes=causes)


def evaluated(member: Member) -> Member:
    """The member as its newest reading and its policy decide; without a reading, as its stored latches do."""
    if (reading := member.reading) is None:
        return replace(member, status=latches.status(member.latches, member.policy)) if member.latches.names else member
    marks = thresholds.marks(member.policy, reading)
    pressure = thresholds.pressure(reading, marks)
    ignored = latches.is_ignored(reading, member.policy)
    if pressure <= 1 and member.latches == NO_LATCHES:  # nothing is above its mark, and no latch can be released
        return replace(
            member,
            marks=marks,
            status=Status.INACTIVE,
            pressure=0.0 if ignored else pressure,
            counted_diagnosis=None,
            stalled=False,
            causes=frozenset(),
        )
    after = latches.next_latches(member.latches, reading, marks, member.policy)
    counts = latches.diagnosis_counts(reading, after, member.policy)
    return replace(
        member,
        latches=after,
        marks=marks,
        status=latches.status(after, member.policy),
        pressure=0.0 if ignored else pressure,
        counted_diagnosis=reading.diagnosis if counts else member.counted_diagnosis if after.diagnosed.on else None,
        stalled=_stalled(member, after, reading, marks),
        causes=_causes(member, after),
    )


def _causes(member: Member, after: Latches) -> frozenset[str]:
    """What else than work lowered pending in this overload: nothing yet where one begins, or that of pending does."""
    begins = not member.latches.names or (after.pending.on and not member.latches.pending.on)
    return frozenset() if after.names and begins else member.causes


def loss_report_due(member: Member, now: float) -> bool:
    """Whether LOSS_INTERVAL passed since a `data_loss` event was stored for this member."""
    return member.lost_reported_at is None or now - member.lost_reported_at >= LOSS_INTERVAL


def _stalled(member: Member, after: Latches, reading: Reading, marks: Marks) -> bool:
    """Whether a stall set or holds the latency latch: until it is off, or a measured latency holds it."""
    if not after.latency_p95.on:
        return False
    release = marks.latency.overload * member.policy.recovery_threshold
    if reading.stalled and reading.latency is not None and reading.latency > release:
        return True
    return member.stalled and not reading.latency_evidence
