"""FakeServiceView: a ServiceView with given states, each evaluated from one reading of each consumer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.member import Latches, Member
from nats_backpressure.core.model.proofs import NO_PROOFS, Proofs
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.status import latches as machine
from nats_backpressure.core.status import thresholds
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState, with_members
from nats_backpressure.core.subject.state import worst_member as worst_of
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, ConsumerKey, Status
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.runtime.view import ServiceView
from tests.fakes.clock import FakeClock

NOW = Now(1000.0, 1_767_225_600.0)
"""New Year's midnight of 2026, UTC."""
SUBJECT = "beamline.router.v1.decide"
POLICY = Policy()
WATCHING = Policy(mode="observe")
SHUT = GatewayAdmission(Action.REJECT, None, 0.0, 30)


class FakeServiceView:
    """All streams were read 10 ms ago, unless a test sets another time."""

    def __init__(self, *states: SubjectState, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.subjects: dict[str, SubjectState] = {state.subject: state for state in states}
        self.looks: Mapping[str, StreamLook] = {}
        self.policies = ActivePolicies(self.settings.policies, self.settings.policy_guard, trust_metadata=False)
        self.newest_read_at: float | None = NOW.mono
        self.next = NOW.mono + 0.5
        self.stretch = 1.0
        self.gone = set[str]()
        self.reads: Callable[[str], bool] = lambda stream: True

    @property
    def watched_changes(self) -> int:
        return hash(tuple(self.subjects))

    @property
    def observing(self) -> bool:
        return self.newest_read_at is not None

    def covering(self, subject: str) -> list[str]:
        return [name for name in self.subjects if ("*" in name or ">" in name) and covers(name, subject)]

    def is_proved_elsewhere(self, subject: str) -> bool:
        return False

    def is_gone(self, subject: str) -> bool:
        return subject in self.gone

    def dismiss(self, subject: str) -> bool:
        if gone := self.is_gone(subject):
            del self.subjects[subject]
        return gone

    def unread(self, subject: str) -> bool:
        return False

    def interval(self, subject: str) -> float:
        return 0.1

    def longest_interval(self) -> float:
        return 0.1

    def proofs(self, subject: str) -> Proofs:
        return NO_PROOFS

    def next_reading(self, subject: str) -> float:
        return self.next

    def window(self, subject: str, now: Now, seconds: float) -> None:
        return None

    def time_in(self, subject: str, now: Now) -> Mapping[str, float]:
        return {}


def member(
    name: str = "c",
    pending: int = 0,
    inflight: int | None = 0,
    latency: float | None = None,
    *,
    stream: str = "S",
    age: float = 0.01,
    policy: Policy = POLICY,
    **more: Any,
) -> Member:
    """A consumer, evaluated from its first reading."""
    at = Now(NOW.mono - age, NOW.wall - age)
    key = ConsumerKey(stream, name)
    reading = Reading(key, at, pending, inflight, latency, None, p95=latency, **more)
    marks = thresholds.marks(policy, reading)
    latches = machine.next_latches(Latches(), reading, marks, policy)
    return Member(
        key,
        policy,
        latches,
        machine.status(latches, policy),
        reading,
        at.mono,
        marks,
        thresholds.pressure(reading, marks),
    )


OVERLOADED = {"pending": 1500, "inflight": 100, "latency": 6000.0}


def subject(*members: Member, name: str = SUBJECT, policy: Policy = POLICY, **more: Any) -> SubjectState:
    """Its record has the status of its worst member."""
    worst = worst_of(members)
    status = worst.status if worst else Status.INACTIVE
    reasons = tuple(s.value for s in worst.latches.signals) if worst else ()
    fields = worst.policy if worst else policy
    admission = SHUT if status is Status.ACTIVE else GatewayAdmission()
    if fields.mode == "observe":
        admission = GatewayAdmission(would=admission.action)
    incident = "k3f9-1" if status > Status.INACTIVE else None
    record = Record(
        name, "k3f9", 1, status, status, since=NOW.wall - 60, incident=incident, reasons=reasons, admission=admission
    )
    given = {
        "record": record,
        "revision": 1,
        "unread_since": NOW.mono - 30,
        "members": {m.key: m for m in members},
    } | more
    return with_members(SubjectState(name, policy, **given), given["members"])


def decision_service(view: ServiceView) -> DecisionService:
    """Random numbers are the same in every run."""
    return DecisionService(view, FakeClock())


def after(seconds: float) -> Now:
    return Now(NOW.mono + seconds, NOW.wall + seconds)
