"""Reading our own state back: what another replica, or we before a restart, wrote."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import astuple

from nats_backpressure.core.model import Admission, Carried, Event
from nats_backpressure.core.subject.next_record import event_id
from nats_backpressure.core.subject.state import CARRIED_LIMIT, UNSENT_LIMIT, Record, Recoveries
from nats_backpressure.policy.schema import Override
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.subjects import NAME
from nats_backpressure.protocol.values import Action, ConsumerKey, Diagnosis, Freshness, Status

EPOCH = re.compile(r"[A-Za-z0-9._-]{1,64}")
HIGHEST = 2**53
LATEST = 32_503_680_000
"""Unix seconds of the year 3000: a time beyond is none of ours, and some cannot be shown."""
DIAGNOSES = {diagnosis.value: diagnosis for diagnosis in Diagnosis}
MOST_ALERTS = 256
MOST_CONSUMERS, MOST_STREAMS = 10_000, 100
"""Consumers of which something is stored under one subject, and streams that they belong to."""
MOST_LATCHES = 32
LONGEST = 256
"""Characters of a reason or an incident."""


def record_of(value: bytes) -> tuple[Record, str] | None:
    """The record in a stored value, with the nonce of its write; None where it is not one of ours."""
    try:
        found = msgspec.json.decode(value, type=messages.State)
        verdict = Admission(
            action=Action(found.action),
            would=Action(found.would) if found.would else None,
            admit_ratio=found.admit_ratio,
            retry_after=found.retry_after_seconds,
        )
        status, told = Status[found.known_status.upper()], Status[found.told.upper()]
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, ValueError, RecursionError):
        return None
    if Status.UNKNOWN in (status, told) or not _sane(found):
        return None
    record = Record(
        subject=found.subject,
        epoch=found.epoch,
        seq=found.seq,
        status=status,
        announced=told,
        unknown=found.status == Status.UNKNOWN.word,
        stale=found.freshness == Freshness.STALE,
        unknown_announced=found.status == Status.UNKNOWN.word if found.lost_listed is None else found.lost_listed,
        since=found.since_unix,
        incident=found.incident,
        reasons=found.reasons,
        admission=verdict,
        latched=tuple((ConsumerKey(c.stream, c.consumer), c.latched) for c in found.latches),
        carried=_carried(found.carried),
        recoveries=found.recoveries,
        diagnosis=DIAGNOSES.get(found.diagnosis or ""),
        override=_override(found.override),
        totals=found.totals,
        alerts=found.alerts,
        announced_rejection=found.rejected,
        unsent=found.unsent,
    )
    return record, found.nonce


def _sane(found: messages.State) -> bool:
    """Whether we could have written this. What it says goes into headers, times and answers: anybody with the right
    to write the bucket could otherwise end the process, at every start anew."""
    return (
        EPOCH.fullmatch(found.epoch) is not None
        and 0 <= found.seq < HIGHEST
        and _moment(found.since_unix)
        and 0 <= found.admit_ratio <= 1
        and 0 <= found.retry_after_seconds < HIGHEST
        and len(found.incident or "") <= LONGEST
        and all(len(reason) <= LONGEST for reason in found.reasons)
        and len(found.alerts) <= MOST_ALERTS
        and all(_moment(alert.since) for alert in found.alerts)
        and len(found.rejected) <= LONGEST
        and all(0 <= n < HIGHEST for n in (found.totals.active, found.totals.warning, found.totals.recovery))
        and (found.totals.last is None or _moment(found.totals.last))
        and _recovered(found.recoveries)
        and _members(found)
        and len(found.unsent) <= UNSENT_LIMIT
        and all(_listed(event, found) for event in found.unsent)
    )


def _members(found: messages.State) -> bool:
    """Whether consumers like these may stand under a subject: each stream of them is asked the server about."""
    keys = [(one.stream, one.consumer) for one in found.latches] + [(one.stream, one.consumer) for one in found.carried]
    latches = [one.latched for one in found.latches]
    return (
        len(keys) <= MOST_CONSUMERS
        and len({stream for stream, _ in keys}) <= MOST_STREAMS
        and all(NAME.fullmatch(name) for key in keys for name in key)
        and all(len(names) <= MOST_LATCHES and all(len(name) <= LONGEST for name in names) for names in latches)
    )


def _override(shown: messages.Override | None) -> Override | None:
    """One that cannot be read is none: what is in force comes from the policy anyway."""
    if shown is None:
        return None
    try:
        until = datetime.fromisoformat(shown.until)
    except ValueError:
        return None
    return Override(shown.action, until.timestamp()) if until.tzinfo is not None else None


def _carried(stored: tuple[messages.StoredFacts, ...]) -> tuple[tuple[ConsumerKey, Carried], ...]:
    """One that cannot be so is left out: a restart then begins with nothing for that consumer."""
    found = ((ConsumerKey(one.stream, one.consumer), _facts(one.facts)) for one in stored)
    return tuple((key, facts) for key, facts in found if facts is not None)[:CARRIED_LIMIT]


def _facts(stored: dict[str, Any]) -> Carried | None:
    known = {name: value for name, value in stored.items() if name not in ("diagnosis", "counted") or _known(value)}
    try:
        facts = msgspec.convert(known, Carried)
    except msgspec.ValidationError:
        return None
    account = facts.account
    sane = (
        0 <= facts.diagnosed_for < LATEST
        and (facts.capacity is None or 0 < facts.capacity < HIGHEST)
        and 0 <= facts.history < HIGHEST
        and 0 <= facts.lost < HIGHEST
        and 0 <= facts.handed_back < HIGHEST
        and len(facts.causes) <= 2
        and (account is None or all(0 <= number < HIGHEST for number in astuple(account)))
    )
    return facts if sane else None


def _known(diagnosis: object) -> bool:
    """Whether this version knows it; what a newer one found is left out."""
    return isinstance(diagnosis, str) and diagnosis in DIAGNOSES


def _recovered(recoveries: Recoveries) -> bool:
    times = (recoveries.began, recoveries.ended)
    return (
        all(at is None or _moment(at) for at in times)
        and 0 <= recoveries.total < HIGHEST
        and 0 <= recoveries.total_seconds < HIGHEST
    )


def _listed(event: Event, found: messages.State) -> bool:
    """An event not told yet is of this very subject and epoch, and goes by the name it must have."""
    return (
        event.subject == found.subject
        and event.epoch == found.epoch
        and 0 < event.seq <= found.seq
        and event.id == event_id(event.subject, event.epoch, event.seq)
        and _moment(event.at)
    )


def _moment(unix: float) -> bool:
    return 0 <= unix <= LATEST
