"""Encodes, decodes and validates a Record, which is stored in the private field `record` of a state."""

from __future__ import annotations

import re
from typing import Any, get_args

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import asdict, astuple

from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.member import STORED_CAUSES, Carried
from nats_backpressure.core.subject import legacy_state
from nats_backpressure.core.subject.record import CARRIED_LIMIT, MOST_REJECTIONS, UNSENT_LIMIT, Record, Recoveries
from nats_backpressure.core.subject.record_builder import event_id
from nats_backpressure.policy.schema import Override
from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.protocol.messages import SCHEMA, State
from nats_backpressure.protocol.subjects import NAME
from nats_backpressure.protocol.timestamps import parse_rfc3339
from nats_backpressure.protocol.values import Action, ConsumerKey, Diagnosis, LatencySource, Status

EPOCH = re.compile(r"[A-Za-z0-9._-]{1,64}")
HIGHEST = 2**53
LATEST = 32_503_680_000
"""Unix seconds of the year 3000. A later time is not one of ours, and some later ones cannot be formatted."""
DIAGNOSES = {str(diagnosis): diagnosis for diagnosis in Diagnosis}
MOST_ALERTS = 256
MOST_CONSUMERS, MOST_STREAMS = 10_000, 100
"""Consumers of which something is stored under one subject, and the streams that they belong to."""
MOST_LATCHES = 32
LENIENT = ("carried", "diagnosis", "override", "unsent")
LATENCY_SOURCES = get_args(LatencySource)
LONGEST = 256
"""Characters of a reason, an incident or a nonce."""


class _WrittenRecord(Record, frozen=True, kw_only=True):
    nonce: str
    """Of the write that stored it."""


class _Read(Struct, frozen=True):
    """The parts of a record that may be unreadable without making the rest unreadable."""

    nonce: str
    carried: tuple[tuple[ConsumerKey, dict[str, Any]], ...] = ()
    diagnosis: str | None = None
    override: Any = None
    unsent: tuple[dict[str, Any], ...] = ()


class _Value(Struct, frozen=True):
    """A state as far as a sidecar reads it."""

    subject: str
    epoch: str
    seq: int
    record: Raw = Raw()
    schema: int = legacy_state.SCHEMA


class _Schema(Struct, frozen=True):
    schema: int = legacy_state.SCHEMA


def encode(record: Record, nonce: str) -> Raw:
    """What `record` of a state holds."""
    return Raw(msgspec.json.encode(_WrittenRecord(nonce=nonce, **asdict(record))))


def record_of(value: bytes) -> tuple[Record, str] | None:
    """The record in a stored state, with the nonce of its write; None where it is not one of ours."""
    try:
        outer = msgspec.json.decode(value, type=_Value)
        if outer.schema == legacy_state.SCHEMA:
            fields = legacy_state.record_fields(msgspec.json.decode(value))
        elif outer.schema == SCHEMA:
            fields = msgspec.json.decode(outer.record, type=dict[str, Any])
        else:
            return None
        if mark := fields.pop("announced_rejection", ""):  # of an earlier build
            fields.setdefault("announced_rejections", [mark])
        lenient = msgspec.convert(fields, _Read)
        strict = {name: stored for name, stored in fields.items() if name not in LENIENT}
        record = msgspec.convert(
            {
                **strict,
                "carried": _carried(lenient.carried),
                "diagnosis": DIAGNOSES.get(lenient.diagnosis or ""),
                "override": _override(lenient.override),
                "unsent": [_readable(event) for event in lenient.unsent],
            },
            Record,
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    same = (record.subject, record.epoch, record.seq) == (outer.subject, outer.epoch, outer.seq)
    return (record, lenient.nonce) if same and len(lenient.nonce) <= LONGEST and _sane(record) else None


def newer_record(value: bytes, subject: str) -> Record | None:
    """What can be read of a state that a newer version stored, in a higher schema; None for any other value.

    It is answered from and must not be written over. Where nothing else can be read the subject is unknown.
    """
    header = read_message(value, _Schema)
    if header is None or header.schema <= SCHEMA:
        return None
    state = read_message(value, State)
    if state is None or state.subject != subject or EPOCH.fullmatch(state.epoch) is None:
        return Record(subject, "", unknown=True)
    status = Status.INACTIVE if state.status == "unknown" else Status[state.status.upper()]
    since = parse_rfc3339(state.since or "")
    record = Record(
        subject,
        state.epoch,
        state.seq,
        status=status,
        announced=status,
        unknown=state.status == "unknown",
        stale=state.freshness == "stale",
        since=since or 0.0,
        incident=state.incident,
        reasons=state.reasons,
        admission=GatewayAdmission(
            Action(state.action),
            None if state.would is None else Action(state.would),
            state.admit_ratio,
            state.retry_after_seconds,
        ),
    )
    return record if _sane(record) else Record(subject, "", unknown=True)


def _sane(record: Record) -> bool:
    """Whether we could have written this. What it holds goes into headers, times and answers: anyone with the right
    to write the bucket could otherwise end the process at each start."""
    return (
        Status.UNKNOWN not in (record.status, record.announced)
        and EPOCH.fullmatch(record.epoch) is not None
        and 0 <= record.seq < HIGHEST
        and _moment(record.since)
        and 0 <= record.admission.admit_ratio <= 1
        and 0 <= record.admission.retry_after < HIGHEST
        and len(record.incident or "") <= LONGEST
        and all(len(reason) <= LONGEST for reason in record.reasons)
        and len(record.alerts) <= MOST_ALERTS
        and all(_moment(one) for alert in record.alerts for one in (alert.since, alert.held, alert.over_for))
        and all(alert.over_since is None or _moment(alert.over_since) for alert in record.alerts)
        and len(record.announced_rejections) <= MOST_REJECTIONS
        and all(len(mark) <= LONGEST for mark in record.announced_rejections)
        and all(0 <= n < HIGHEST for n in (record.totals.active, record.totals.warning, record.totals.recovery))
        and (record.totals.last is None or _moment(record.totals.last))
        and _recovered(record.recoveries)
        and _members(record)
        and len(record.unsent) <= UNSENT_LIMIT
        and all(_listed(event, record) for event in record.unsent)
    )


def _members(record: Record) -> bool:
    """Whether consumers like these may be stored under a subject: the server is asked about each stream of them."""
    keys = [key for key, _ in (*record.latched, *record.carried)]
    latches = [names for _, names in record.latched]
    return (
        len(keys) <= MOST_CONSUMERS
        and len({key.stream for key in keys}) <= MOST_STREAMS
        and all(NAME.fullmatch(name) for key in keys for name in key)
        and all(len(names) <= MOST_LATCHES and all(len(name) <= LONGEST for name in names) for names in latches)
    )


def _override(stored: Any) -> Override | None:
    """One that cannot be read is none: what is in force comes from the policy anyway."""
    try:
        known = {name: stored[name] for name in Override.__struct_fields__ if name in stored}
        return msgspec.convert(known, Override)
    except (msgspec.ValidationError, TypeError):
        return None


def _readable(event: dict[str, Any]) -> dict[str, Any]:
    """An unpublished event without the words that this version does not know, where it can do without them."""
    changed: dict[str, Any] = {"override": _override(event.get("override"))}
    if not _known(event.get("diagnosis")):
        changed["diagnosis"] = None
    if isinstance(reading := event.get("reading"), dict):
        words = ("diagnosis", "lasting_diagnosis")
        unknown = {word: None for word in words if not _known(reading.get(word))}
        if reading.get("latency_source") not in LATENCY_SOURCES:
            unknown["latency_source"] = None
        changed["reading"] = reading | unknown
    return event | changed


def _carried(stored: tuple[tuple[ConsumerKey, dict[str, Any]], ...]) -> tuple[tuple[ConsumerKey, Carried], ...]:
    """One that is not valid is left out: a restart then starts with nothing for that consumer."""
    readable = ((key, _facts(facts)) for key, facts in stored)
    return tuple((key, facts) for key, facts in readable if facts is not None)[:CARRIED_LIMIT]


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
        and (facts.delivered is None or 0 <= facts.delivered < HIGHEST)
        and len(facts.causes) <= STORED_CAUSES
        and (account is None or all(0 <= number < HIGHEST for number in astuple(account)))
    )
    return facts if sane else None


def _known(diagnosis: object) -> bool:
    """Whether this version knows the diagnosis; one of a newer version is left out."""
    return isinstance(diagnosis, str) and diagnosis in DIAGNOSES


def _recovered(recoveries: Recoveries) -> bool:
    times = (recoveries.began, recoveries.ended)
    return (
        all(at is None or _moment(at) for at in times)
        and 0 <= recoveries.total < HIGHEST
        and 0 <= recoveries.total_seconds < HIGHEST
    )


def _listed(event: SubjectEvent, record: Record) -> bool:
    """Whether an unpublished event is of this subject and epoch, with the id that it must have."""
    return (
        event.subject == record.subject
        and event.epoch == record.epoch
        and 0 < event.seq <= record.seq
        and event.id == event_id(event.subject, event.epoch, event.seq)
        and _moment(event.at)
    )


def _moment(unix: float) -> bool:
    return 0 <= unix <= LATEST
