"""Builds the next record of a subject and numbers its events."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from nats_backpressure.core.admission import gateway_admission
from nats_backpressure.core.admission.adaptive import SHEDDING
from nats_backpressure.core.model.event import SubjectAlert, SubjectEvent
from nats_backpressure.core.model.member import CAUSES, CONSUMER_DELETED, Member
from nats_backpressure.core.signals.diagnosis import confirmed
from nats_backpressure.core.status import alerts
from nats_backpressure.core.status.alert_times import aged
from nats_backpressure.core.status.freshness import Limits
from nats_backpressure.core.subject.member_update import loss_report_due
from nats_backpressure.core.subject.record import MOST_REJECTIONS, UNSENT_LIMIT, Loss, Record, Recoveries, Totals
from nats_backpressure.core.subject.restart_facts import awaits_reading
from nats_backpressure.core.subject.state import SubjectState, admission_status, deciding_policy, judged_status
from nats_backpressure.policy.schema import Rejection, in_force
from nats_backpressure.protocol.patterns import encode
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Diagnosis, EventType, Status

NO_EPOCH = "policy"
"""The epoch of events about refused policies under a key that belongs to no watched subject."""


class RecordBuilder:
    """Builds the next record. Each method applies one kind of change; call them in the order in which events are to be
    numbered."""

    def __init__(self, state: SubjectState, stored: Record, now: Now) -> None:
        self.state = state
        self.now = now
        self.record = stored
        if state.renumber_from is not None:
            self.record = renumbered(replace(stored, unsent=self._unpublished()), *state.renumber_from)
        self.member = state.worst
        self.policy = deciding_policy(state)
        self.override = in_force(self.policy, now)
        self.losses: tuple[Loss, ...] = ()
        self.departed_lost = 0

    @property
    def room(self) -> int:
        """How many more events the record can hold."""
        return UNSENT_LIMIT - len(self._unpublished())

    def _unpublished(self) -> tuple[SubjectEvent, ...]:
        return tuple(event for event in self.record.unsent if event.id not in self.state.published)

    def mark_unknown(self) -> None:
        """The status becomes unknown at once; where there is no room the event follows later."""
        if self.state.unstored:
            return
        if not self.record.unknown:
            self.record = replace(self.record, unknown=True, since=self.now.wall, reasons=())
        if not self.record.unknown_announced and self.room:
            self.record = replace(self.record, unknown_announced=True)
            self._add_event(EventType.MONITORING_LOST, self.record.status, self.record.status, ())

    def mark_known(self) -> None:
        """The status is known again at once; where no event announced that it was unknown, none is needed now."""
        if self.record.unknown:
            self.record = replace(self.record, unknown=False, since=self.now.wall)
        if self.record.unknown_announced and self.room:
            self.record = replace(self.record, unknown_announced=False)
            self._add_event(EventType.MONITORING_RESTORED, self.record.status, self.record.status, ())

    def mark_stale(self, alone: bool) -> None:
        """`alone`: whether this subject is stale while others are read, see `is_stale_alone`."""
        self.record = replace(self.record, stale=alone and not self.record.unknown)

    def report_losses(self) -> None:
        """Add a `data_loss` event, LOSS_INTERVAL after the last one, and always before a recovery; without room it
        waits for the next record that has some."""
        falls = self.member is not None and self.member.status < self.record.announced
        members = [
            m for m in self.state.members.values() if m.unreported and (falls or loss_report_due(m, self.now.mono))
        ]
        if (members or self.state.departed_lost) and self.room:
            self.departed_lost = self.state.departed_lost
            lost = sum(m.unreported for m in members) + self.departed_lost
            self._add_event(EventType.DATA_LOSS, self.record.status, self.record.status, self.record.reasons, lost=lost)
            self.losses = tuple(Loss(m.key, m.lost, m.reading.account if m.reading else m.account) for m in members)

    def update_status(self) -> None:
        """Move to the worst member's status with one event; while the list is full, the next event covers the change
        too."""
        assert self.member is not None, "a proof comes from a member that was evaluated"
        status = judged_status(self.state)
        reasons = self._reasons()
        latched = tuple((m.key, m.latches.names) for m in self.state.members.values() if m.latches.names)
        if status is not self.record.status:
            self.record = replace(self.record, status=status, since=self.now.wall)
        self.record = replace(self.record, reasons=reasons, latched=tuple(sorted(latched)))
        self._open_incident()
        if status is not self.record.announced and self.room:
            rose = status > self.record.announced
            kind = (
                EventType.RECOVERY if not rose else EventType.ACTIVE if status is Status.ACTIVE else EventType.WARNING
            )
            self._add_event(kind, self.record.announced, status, self._reasons(fell=not rose))
            self.record = replace(self.record, announced=status)
        self._close_incident()

    def update_alerts(self, limits: Limits, seen_to: Mapping[str, float]) -> None:
        """Move the alerts by what was seen of each, up to that monotonic time; those for whose event there is no room
        stay as they were until there is."""
        members = tuple(self.state.members.values())
        before = {alert.name: alert for alert in self.record.alerts}
        was = aged(self.record.alerts, self.state.running_since, seen_to)
        awaited = awaits_reading(self.state, self.now, limits)
        watched = 0.0 if self.state.watched_since is None else self.now.mono - self.state.watched_since
        after = alerts.next_alerts(was, self.record.status, members, self.now, awaited, watched)
        changed = alerts.changed_alerts(was, after)
        unchanged = set(map(id, was))
        same = {alert.name for alert in after if id(alert) in unchanged} | {
            alert.name for alert in changed[self.room :]
        }
        for one in changed[: self.room]:
            kind = EventType.ALERT_FIRING if one.state == "firing" else EventType.ALERT_RESOLVED
            self._add_event(kind, self.record.status, self.record.status, self.record.reasons, alert=one)
        shown = [before.get(alert.name) if alert.name in same else alert for alert in after]
        self.record = replace(self.record, alerts=tuple(alert for alert in shown if alert is not None))

    def report_rejections(self) -> None:
        """Add a `policy_rejected` event for each refused policy that has none; without room it waits."""
        for refused in self.state.rejections:
            announced, status = self.record.announced_rejections, self.record.status
            if refused.mark in announced or not self.room or self.state.unstored:
                continue
            self._add_event(EventType.POLICY_REJECTED, status, status, self.record.reasons, refused=refused)
            announced = (*announced, refused.mark)[-MOST_REJECTIONS:]
            self.record = replace(self.record, announced_rejections=announced)

    def update_diagnosis(self) -> None:
        """Store the diagnosis, and the override in force."""
        diagnosis = None if self.record.unknown else reported_diagnosis(self.member, self.record.status)
        self.record = replace(self.record, diagnosis=diagnosis, override=self.override)

    def _reasons(self, fell: bool = False) -> tuple[str, ...]:
        """The latched signals, then what else caused the status; after a fall also what made it fall."""
        member = self.member
        assert member is not None
        lowered = frozenset[str]().union(*(m.causes for m in self.state.members.values()))
        if self.state.member_deleted:
            lowered |= {CONSUMER_DELETED}
        causes = {
            "stalled": member.stalled,
            SHEDDING: self.state.shedding.shedding,
            member.counted_diagnosis or "": member.counted_diagnosis
            and member.latches.pending.on,  # beside a backlog only
            **{cause: fell and cause in lowered for cause in CAUSES},
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

    def _add_event(
        self,
        kind: EventType,
        was: Status,
        to: Status,
        reasons: tuple[str, ...],
        lost: int | None = None,
        alert: SubjectAlert | None = None,
        refused: Rejection | None = None,
    ) -> None:
        seq = self.record.seq + 1
        answered = admission_status(self.state, to)
        admission = gateway_admission.admission_at_status(self.policy, answered, self.state.shedding)
        admission = gateway_admission.with_override(admission, self.override, self.policy)
        reading = self.member.reading if self.member else None
        event = SubjectEvent(
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
            retry_after=admission.retry_after,
            admit_ratio=admission.admit_ratio,
            lost=lost,
            diagnosis=reported_diagnosis(self.member, to),
            override=self.override,
            alert=alert,
            errors=refused.errors if refused else (),
            policy_revision=refused.mark if refused else "",
        )
        unsent = (*self._unpublished(), event)
        self.record = replace(self.record, seq=seq, unsent=unsent, totals=self._new_totals(kind))

    def _new_totals(self, kind: EventType) -> Totals:
        was = self.record.totals
        if kind not in (EventType.ACTIVE, EventType.WARNING, EventType.RECOVERY):
            return was
        return Totals(
            active=was.active + (kind is EventType.ACTIVE),
            warning=was.warning + (kind is EventType.WARNING),
            recovery=was.recovery + (kind is EventType.RECOVERY),
            last=self.now.wall,
        )


def reported_diagnosis(member: Member | None, status: Status) -> Diagnosis | None:
    """The diagnosis of a member as it is shown beside this status."""
    return None if member is None or member.reading is None else confirmed(member.reading.diagnosis, status)


def event_id(subject: str, epoch: str, seq: int) -> str:
    """The id of an event: the same in every replica that sees the same change."""
    return f"{encode(subject)}:{epoch}:{seq}"


def rejection_event(subject: str, rejection: Rejection, at: float, seq: int, epoch: str = NO_EPOCH) -> SubjectEvent:
    """The event about a refused policy whose key belongs to no watched subject: no state numbers its events."""
    return SubjectEvent(
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
        errors=rejection.errors,
        policy_revision=rejection.mark,
    )


def renumbered(record: Record, epoch: str, base: int) -> Record:
    """The record in a new epoch, with its unsent events numbered from `base` + 1."""
    unsent = tuple(
        replace(e, id=event_id(e.subject, epoch, base + n), epoch=epoch, seq=base + n)
        for n, e in enumerate(record.unsent, start=1)
    )
    return replace(record, epoch=epoch, seq=base + len(unsent), unsent=unsent)
