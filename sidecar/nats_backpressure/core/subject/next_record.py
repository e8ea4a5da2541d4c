"""What has changed for a subject since its record was stored, as the next record with its events."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission import binary
from nats_backpressure.core.admission.adaptive import SHEDDING
from nats_backpressure.core.model import (
    DATA_LOSS,
    NO_LATCHES,
    NOTHING_CARRIED,
    PURGED,
    Account,
    Admission,
    Alert,
    Carried,
    Event,
    Member,
)
from nats_backpressure.core.signals.diagnosis import confirmed
from nats_backpressure.core.status import alerts
from nats_backpressure.core.status.freshness import Limits, freshness, status_proof
from nats_backpressure.core.subject.inputs import RecordCreated
from nats_backpressure.core.subject.state import (
    CARRIED_LIMIT,
    LOSS_INTERVAL,
    UNSENT_LIMIT,
    Loss,
    Record,
    Recoveries,
    SubjectState,
    Totals,
)
from nats_backpressure.policy.schema import Policy, Rejection, in_force
from nats_backpressure.protocol.patterns import encode
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, EventType, Freshness, Status

CARRY_EVERY = 30.0
"""Seconds without a write after which what is merely carried along, a changed diagnosis above all, is stored alone."""
ACCOUNT_EVERY = 2.0
"""The same for a backlog that grew: what of it is lost while nobody looks is counted from what was stored."""
BACKLOG_STEP, HANDFUL = 1.2, 10
"""Factor, and messages beside it, by which a backlog must exceed what is stored of it, to be worth such a write."""
CAPACITY_STEP = 1.2
"""Factor by which what was learnt of capacity must differ from what is stored, to be worth a write of its own."""
NO_EPOCH = "policy"
"""The epoch under a key of which nothing but refused policies was ever told."""


def begin_record(state: SubjectState, begun: RecordCreated, now: Now) -> Record:
    """A record for a subject of which nothing is stored: it is taken to be as was last told."""
    status = max(begun.status, Status.INACTIVE)
    return Record(
        subject=state.subject,
        epoch=begun.epoch,
        seq=begun.seq,
        status=status,
        announced=status,
        unknown=begun.lost,
        unknown_announced=begun.lost,
        since=now.wall,
        incident=begun.incident,
        admission=binary.admission_at_status(state.policy, status),
    )


def worst_member(members: Iterable[Member]) -> Member | None:
    """The member that speaks for its subject: by status, then pressure, then name; one never judged is left out."""
    members = tuple(members)
    if len(members) == 1:
        return members[0] if members[0].status is not Status.UNKNOWN else None
    return min(
        (m for m in members if m.status is not Status.UNKNOWN),
        key=lambda m: (-m.status, -m.pressure, m.key),
        default=None,
    )


def newest_proof(state: SubjectState) -> float | None:
    """The newest proof of any member."""
    return max((m.proof for m in state.members.values() if m.proof is not None), default=None)


def is_unobserved(state: SubjectState, now: Now, limits: Limits) -> bool:
    """Whether nothing proves any more what is said of the subject: nobody was read, or whoever holds its status."""
    newest = newest_proof(state)
    if newest is None:
        return now.mono >= state.deadline
    if freshness(newest, now.mono, limits) is Freshness.UNKNOWN:
        return True
    speaks = worst_member(state.members.values())
    if speaks is None or speaks.status is Status.INACTIVE:
        return False
    return freshness(status_proof(state.members.values()), now.mono, limits) is Freshness.UNKNOWN


def is_stale_alone(state: SubjectState, limits: Limits, swept: float | None) -> bool:
    """Whether what is said of the subject was already stale when something else was read: the heartbeat, which says
    when that was, then proves nothing of it. Where all age together the heartbeat stands still, and says it all."""
    if swept is None or state.unstored:
        return False
    if newest_proof(state) is None and state.deadline - limits.unknown_after < swept:
        return True  # everything was read or tried since, and nobody under this subject could be read
    newest = status_proof(state.members.values())
    return newest is not None and freshness(newest, swept, limits) is not Freshness.KNOWN


def is_quiescent(state: SubjectState) -> bool:
    """Whether nothing is latched, nothing waits to be told, and all of that is stored: the usual case by far, for
    which neither a calm reading nor time alone changes anything as long as there is proof."""
    record = state.record
    if (
        record is None
        or record.status is not Status.INACTIVE
        or record.announced is not Status.INACTIVE
        or record.unknown
        or record.stale
        or record.unknown_announced
        or state.departed_lost
        or record.reasons
        or record.latched
        or record.unsent
        or record.override is not None
        or state.unstored
        or state.renumber_from is not None
        or (state.rejection is not None and state.rejection.mark != record.announced_rejection)
        or any(alert.state != "resolved" for alert in record.alerts)
    ):
        return False
    for member in state.members.values():
        ruled = member.policy.override or member.policy.alerts
        if member.status > Status.INACTIVE or member.latches != NO_LATCHES or member.unreported or ruled:
            return False
    speaks = worst_member(state.members.values())
    if speaks is None or speaks.reading is None:
        return False
    verdict = binary.admission_at_status(speaks.policy, Status.INACTIVE, state.shedding)
    return record.admission == verdict and not state.shedding.shedding


class Change(Struct, frozen=True):
    """What to store next."""

    record: Record
    losses: tuple[Loss, ...] = ()
    """What its events report as lost."""
    departed_lost: int = 0
    """The same of consumers that are gone."""


def next_record(
    state: SubjectState, now: Now, limits: Limits, swept: float | None = None, passing: bool = False
) -> Change | None:
    """The record to store next, or None while the stored one still says it all. `swept`: when anything was read.
    `passing`: only time passes; then alone it is looked whether something carried along is due."""
    late = passing and carried_write_due(state, now)
    if (
        not late
        and is_quiescent(state)
        and not is_unobserved(state, now, limits)
        and not is_stale_alone(state, limits, swept)
    ):
        return None
    return build_record(state, now, limits, swept, late)


def carried_write_due(state: SubjectState, now: Now) -> bool:
    """Whether nothing was stored for CARRY_EVERY, and something that goes with the next write is another now; or for
    ACCOUNT_EVERY, and a backlog grew, or a message was handed back beside none."""
    record = state.record
    if record is None or record.unknown or now.mono - state.written_at < ACCOUNT_EVERY:
        return False
    if grown := [m for m in state.members.values() if m.account is not None and m.account.pending > HANDFUL]:
        stored = dict(record.carried)
        full = len(stored) >= CARRIED_LIMIT
        known = ((stored.get(m.key, NOTHING_CARRIED).account, m.account) for m in grown if m.key in stored or not full)
        if any(account is not None and _outgrown(before, account) for before, account in known):
            return True
    returned = [m for m in state.members.values() if m.reading is not None and m.reading.handed_back]
    if returned:
        stored = dict(record.carried)
        if any(m.reading.handed_back > stored.get(m.key, NOTHING_CARRIED).handed_back for m in returned if m.reading):
            return True
    if now.mono - state.written_at < CARRY_EVERY:
        return False
    speaks = worst_member(state.members.values())
    if speaks is not None and speaks.reading is not None:
        said = confirmed(speaks.reading.said, record.status)
        if said is not record.diagnosis:
            return True
    stored = dict(record.carried)
    full = len(stored) >= CARRIED_LIMIT
    return any(
        _moved(stored.get(m.key, NOTHING_CARRIED), m) for m in state.members.values() if m.key in stored or not full
    )


def _outgrown(stored: Account | None, account: Account) -> bool:
    """Whether much more waits than what is stored could still tell of."""
    known = 0 if stored is None or stored.kind != account.kind else stored.pending - (account.given - stored.given)
    return account.pending > max(0, known) * BACKLOG_STEP + HANDFUL


def _moved(stored: Carried, member: Member) -> bool:
    reading = member.reading
    if reading is None:
        return False
    if reading.said is not None and reading.said is not stored.diagnosis:
        return True
    was, capacity = stored.capacity, reading.capacity
    if capacity is None or member.policy.pending.overload_seconds is None:
        return False
    return was is None or not was / CAPACITY_STEP <= capacity <= was * CAPACITY_STEP


def build_record(
    state: SubjectState, now: Now, limits: Limits, swept: float | None = None, late: bool = False
) -> Change | None:
    """What to store if it says anything else than what is stored; `late`: also if it only carries something else."""
    assert state.record is not None
    draft = RecordBuilder(state, state.record, now)
    if is_unobserved(state, now, limits):
        if not draft.record.unknown:
            draft.tell_losses()
        draft.lose()
    elif newest_proof(state) is not None:
        draft.restore()
        draft.tell_losses()
        draft.follow()
        if _certain(state, now, limits):
            draft.alert()
    draft.age(is_stale_alone(state, limits, swept))
    draft.reject()
    draft.note()
    record = replace(draft.record, admission=_verdict(state, draft.record))
    if draft.record.unsent and all(e.id in state.published for e in draft.record.unsent):
        record = replace(record, unsent=())
    if late or records_differ(record, state.record) or (state.unstored and newest_proof(state) is not None):
        return Change(replace(record, carried=_carried(state, record, draft.losses)), draft.losses, draft.left_lost)
    return None


def records_differ(a: Record, b: Record) -> bool:
    """Whether two records say different things; what is merely carried along says nothing."""
    return a is not b and replace(a, carried=(), diagnosis=None) != replace(b, carried=(), diagnosis=None)


def _carried(state: SubjectState, record: Record, losses: tuple[Loss, ...]) -> tuple[tuple[ConsumerKey, Carried], ...]:
    """What to store of each consumer, CARRIED_LIMIT at most: those with latches first, then by how much waits."""
    reported, before = {loss.key: loss for loss in losses}, state.carried
    read = {
        key: carried_of(m, before.get(key, NOTHING_CARRIED), reported.get(key))
        for key, m in state.members.items()
        if m.reading is not None
    }
    latched = {key for key, _ in record.latched}
    found = [(key, carried) for key, carried in (state.carried | read).items() if carried != NOTHING_CARRIED]

    def order(entry: tuple[ConsumerKey, Carried]) -> tuple[bool, int, ConsumerKey]:
        key, carried = entry
        return key not in latched, -carried.account.pending if carried.account else 0, key

    return tuple(sorted(found, key=order)[:CARRIED_LIMIT])


def carried_of(member: Member, before: Carried = NOTHING_CARRIED, loss: Loss | None = None) -> Carried:
    """What a restart needs to know of a consumer, once `loss` is reported; `before` is what was read back, which goes
    on until something is diagnosed anew."""
    reading = member.reading
    said = reading.said if reading else None
    return Carried(
        diagnosis=said or before.diagnosis,
        diagnosed_for=reading.diagnosed_for if reading and said else before.diagnosed_for,
        capacity=reading.capacity if reading else None,
        account=loss.account if loss else member.account,
        lost=loss.lost if loss else member.lost_reported,
        causes=tuple(sorted(member.causes)),
        counted=member.counted_diagnosis,
        stalled=member.stalled,
        handed_back=reading.handed_back if reading else 0,
        history=reading.history if reading else 0,
    )


def _awaited(state: SubjectState, now: Now) -> bool:
    """Whether a consumer that is known from the store was not read since the start, and may still be."""
    members = state.members
    return now.mono < state.deadline and any(
        key not in members or members[key].reading is None for key in (*state.carried, *members)
    )


def reported_diagnosis(member: Member | None, status: Status) -> Diagnosis | None:
    """What is reported of a member beside a status."""
    return None if member is None or member.reading is None else confirmed(member.reading.diagnosis, status)


def _certain(state: SubjectState, now: Now, limits: Limits) -> bool:
    """Whether what is known is fresh enough to draw anything from time alone."""
    newest = newest_proof(state)
    return newest is not None and freshness(newest, now.mono, limits) is Freshness.KNOWN


def policy_of(state: SubjectState) -> Policy:
    """Of the member that speaks, or of the subject itself."""
    member = worst_member(state.members.values())
    return member.policy if member else state.policy


def _verdict(state: SubjectState, record: Record) -> Admission:
    """What is stored does not open: whoever reads it opens it by a clock of its own."""
    fresh = Freshness.UNKNOWN if record.unknown else Freshness.KNOWN
    verdict = binary.current_admission(policy_of(state), record.status, fresh, record.admission, 0.0, state.shedding)
    # Steps below a hundredth are not worth a write.
    return record.admission if _same(verdict, record.admission) else verdict


def _same(a: Admission, b: Admission) -> bool:
    near = abs(a.admit_ratio - b.admit_ratio) < 0.01
    return near and replace(a, admit_ratio=0) == replace(b, admit_ratio=0)


class RecordBuilder:
    """The record being drawn up; each method is one thing that may have changed, in the order events are told."""

    def __init__(self, state: SubjectState, stored: Record, now: Now) -> None:
        self._sent = state.published
        unsent = tuple(e for e in stored.unsent if e.id not in state.published)
        self.record = (
            stored if state.renumber_from is None else _rebased(replace(stored, unsent=unsent), *state.renumber_from)
        )
        self.state = state
        self.now = now
        self.member = worst_member(state.members.values())
        self.policy = policy_of(state)
        self.override = in_force(self.policy, now)
        self.losses: tuple[Loss, ...] = ()
        self.left_lost = 0

    @property
    def room(self) -> int:
        return UNSENT_LIMIT - sum(e.id not in self._sent for e in self.record.unsent)

    def lose(self) -> None:
        """The status is unknown whatever room there is; the event waits for some."""
        if self.state.unstored:
            return
        if not self.record.unknown:
            self.record = replace(self.record, unknown=True, since=self.now.wall, reasons=())
        if not self.record.unknown_announced and self.room:
            self.record = replace(self.record, unknown_announced=True)
            self._tell(EventType.MONITORING_LOST, self.record.status, self.record.status, ())

    def restore(self) -> None:
        """The status is known again whatever room there is; a loss that was never listed needs no event."""
        if self.record.unknown:
            self.record = replace(self.record, unknown=False, since=self.now.wall)
        if self.record.unknown_announced and self.room:
            self.record = replace(self.record, unknown_announced=False)
            self._tell(EventType.MONITORING_RESTORED, self.record.status, self.record.status, ())

    def age(self, alone: bool) -> None:
        self.record = replace(self.record, stale=alone and not self.record.unknown)

    def tell_losses(self) -> None:
        """Report what was lost, LOSS_INTERVAL apart, and before a recovery in any case; without room it waits for the
        next record that has some."""
        falls = self.member is not None and self.member.status < self.record.announced
        members = [m for m in self.state.members.values() if m.unreported and (falls or _loss_due(m, self.now))]
        if (members or self.state.departed_lost) and self.room:
            self.left_lost = self.state.departed_lost
            lost = sum(m.unreported for m in members) + self.left_lost
            self._tell(EventType.DATA_LOSS, self.record.status, self.record.status, self.record.reasons, lost=lost)
            self.losses = tuple(Loss(m.key, m.lost, m.reading.account if m.reading else m.account) for m in members)

    def follow(self) -> None:
        """Move to the worst member's status, telling one event; fold it into the next one while the list is full."""
        if self.member is None or self.record.unknown:
            return
        status = self.member.status
        if self.state.shedding.shedding:  # nobody is shed in silence
            status = max(status, Status.WARNING)
        reasons = self._reasons()
        latched = tuple((m.key, m.latches.names) for m in self.state.members.values() if m.latches != NO_LATCHES)
        if status is not self.record.status:
            self.record = replace(self.record, status=status, since=self.now.wall)
        self.record = replace(self.record, reasons=reasons, latched=tuple(sorted(latched)))
        self._open_incident()
        if status is not self.record.announced and self.room:
            rose = status > self.record.announced
            kind = (
                EventType.RECOVERY if not rose else EventType.ACTIVE if status is Status.ACTIVE else EventType.WARNING
            )
            self._tell(kind, self.record.announced, status, self._reasons(fell=not rose))
            self.record = replace(self.record, announced=status)
        self._close_incident()

    def alert(self) -> None:
        """Follow the alerts; those for which the list has no room stay as they were, and are told when it has."""
        if self.record.unknown:
            return
        members = tuple(self.state.members.values())
        before = {alert.name: alert for alert in self.record.alerts}
        awaited = _awaited(self.state, self.now)
        watched = 0.0 if self.state.watched_since is None else self.now.mono - self.state.watched_since
        standing = alerts.next_alerts(
            self.record.alerts, self.policy, self.record.status, members, self.now, awaited, watched
        )
        changed = alerts.changed_alerts(self.record.alerts, standing)
        late = {alert.name for alert in changed[self.room :]}
        for one in changed[: self.room]:
            kind = EventType.ALERT_FIRING if one.state == "firing" else EventType.ALERT_RESOLVED
            self._tell(kind, self.record.status, self.record.status, self.record.reasons, alert=one)
        kept = [before.get(alert.name) if alert.name in late else alert for alert in standing]
        self.record = replace(self.record, alerts=tuple(alert for alert in kept if alert is not None))

    def reject(self) -> None:
        refused = self.state.rejection
        if refused is None or refused.mark == self.record.announced_rejection or not self.room or self.state.unstored:
            return
        status = self.record.status
        self._tell(EventType.POLICY_REJECTED, status, status, self.record.reasons, refused=refused)
        self.record = replace(self.record, announced_rejection=refused.mark)

    def note(self) -> None:
        """What is kept beside the status: the diagnosis, and the override in force."""
        diagnosis = None if self.record.unknown else reported_diagnosis(self.member, self.record.status)
        self.record = replace(self.record, diagnosis=diagnosis, override=self.override)

    def _reasons(self, fell: bool = False) -> tuple[str, ...]:
        """The latched signals, then what else had a part in it; of a fall, also what made it fall."""
        member = self.member
        assert member is not None
        causes = {
            "stalled": member.stalled,
            SHEDDING: self.state.shedding.shedding,
            member.counted_diagnosis or "": member.counted_diagnosis
            and member.latches.pending.on,  # beside a backlog only
            DATA_LOSS: fell and any(DATA_LOSS in m.causes for m in self.state.members.values()),
            PURGED: fell and any(PURGED in m.causes for m in self.state.members.values()),
            "consumer_deleted": fell and self.state.member_deleted,
            "override": self.override,
        }
        return (*(s.value for s in member.latches.signals), *(str(name) for name, had in causes.items() if had))

    def _open_incident(self) -> None:
        if self.record.status > Status.INACTIVE and self.record.incident is None:
            incident = f"{self.record.epoch}-{self.record.seq + 1}"
            recoveries = replace(self.record.recoveries, incident=incident, began=self.now.wall, ended=None)
            self.record = replace(self.record, incident=incident, recoveries=recoveries)

    def _close_incident(self) -> None:
        if (
            self.record.announced > Status.INACTIVE
            or self.record.status > Status.INACTIVE
            or self.record.incident is None
        ):
            return
        was, now = self.record.recoveries, self.now.wall
        lasted = max(0.0, now - was.began) if was.began is not None else 0.0
        recoveries = Recoveries(
            incident=self.record.incident,
            began=was.began,
            ended=now,
            total=was.total + 1,
            total_seconds=was.total_seconds + lasted,
        )
        self.record = replace(self.record, incident=None, recoveries=recoveries)

    def _tell(
        self,
        kind: EventType,
        was: Status,
        to: Status,
        reasons: tuple[str, ...],
        lost: int | None = None,
        alert: Alert | None = None,
        refused: Rejection | None = None,
    ) -> None:
        seq = self.record.seq + 1
        verdict = binary.admission_at_status(self.policy, to, self.state.shedding)
        verdict = binary.with_override(verdict, self.override, self.policy)
        reading = self.member.reading if self.member else None
        event = Event(
            id=event_id(self.record.subject, self.record.epoch, seq),
            type=kind,
            subject=self.record.subject,
            at=self.now.wall,
            epoch=self.record.epoch,
            seq=seq,
            incident=self.record.incident,
            was=was,
            now=to,
            reasons=reasons,
            pressure=self.member.pressure if self.member else None,
            reading=reading,
            marks=self.member.marks if self.member else None,
            retry_after=verdict.retry_after,
            admit_ratio=verdict.admit_ratio,
            lost=lost,
            diagnosis=reported_diagnosis(self.member, to),
            override=self.override,
            alert=alert,
            errors=refused.errors if refused else (),
            policy_revision=refused.mark if refused else "",
        )
        unsent = tuple(e for e in self.record.unsent if e.id not in self._sent)
        self.record = replace(self.record, seq=seq, unsent=(*unsent, event), totals=self._counted(kind))

    def _counted(self, kind: EventType) -> Totals:
        was = self.record.totals
        if kind not in (EventType.ACTIVE, EventType.WARNING, EventType.RECOVERY):
            return was
        return Totals(
            active=was.active + (kind is EventType.ACTIVE),
            warning=was.warning + (kind is EventType.WARNING),
            recovery=was.recovery + (kind is EventType.RECOVERY),
            last=self.now.wall,
        )


def _loss_due(member: Member, now: Now) -> bool:
    return member.lost_reported_at is None or now.mono - member.lost_reported_at >= LOSS_INTERVAL


def event_id(subject: str, epoch: str, seq: int) -> str:
    """The same for every replica that concludes the same change."""
    return f"{encode(subject)}:{epoch}:{seq}"


def rejection_event(subject: str, refused: Rejection, at: float, seq: int, epoch: str = NO_EPOCH) -> Event:
    """A refused policy under a key that nobody watches: no state numbers its events."""
    return Event(
        id=event_id(subject, epoch, seq),
        type=EventType.POLICY_REJECTED,
        subject=subject,
        at=at,
        epoch=epoch,
        seq=seq,
        incident=None,
        was=Status.INACTIVE,
        now=Status.INACTIVE,
        reasons=(),
        pressure=None,
        reading=None,
        marks=None,
        retry_after=0,
        admit_ratio=1.0,
        errors=refused.errors,
        policy_revision=refused.mark,
    )


def _rebased(record: Record, epoch: str, base: int) -> Record:
    """The record in a new epoch, what is unsent numbered on from `base`."""
    unsent = tuple(
        replace(e, id=event_id(e.subject, epoch, base + n), epoch=epoch, seq=base + n)
        for n, e in enumerate(record.unsent, start=1)
    )
    return replace(record, epoch=epoch, seq=base + len(unsent), unsent=unsent)
