"""Reading our own state back: what another replica, or we before a restart, wrote."""

from __future__ import annotations

import msgspec

from sidecar.core.model import Action, ConsumerKey, Status
from sidecar.core.state import Record, Verdict
from sidecar.wire import messages


def record_of(value: bytes) -> tuple[Record, str] | None:
    """The record in a stored value, with the nonce of its write; None where it is not one of ours."""
    try:
        found = msgspec.json.decode(value, type=messages.State)
        verdict = Verdict(
            action=Action(found.action),
            would=Action(found.would) if found.would else None,
            admit_ratio=found.admit_ratio,
            retry_after=found.retry_after_seconds,
        )
        status, told = Status[found.known_status.upper()], Status[found.told.upper()]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, ValueError):
        return None
    record = Record(
        subject=found.subject,
        epoch=found.epoch,
        seq=found.seq,
        status=status,
        told=told,
        lost=found.status == Status.UNKNOWN.word,
        since=found.since_unix,
        incident=found.incident,
        reasons=found.reasons,
        verdict=verdict,
        latched=tuple((ConsumerKey(c.stream, c.consumer), c.latched) for c in found.latches),
        recoveries=found.recoveries,
        unsent=found.unsent,
    )
    return record, found.nonce
