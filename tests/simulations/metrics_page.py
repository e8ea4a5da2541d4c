"""The metrics page of a service whose states a test sets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from nats_backpressure.adapters.prometheus.collector import StateCollector
from nats_backpressure.adapters.prometheus.counters import Counters
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.proofs import NO_PROOFS, Proofs
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.status.thresholds import marks
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState, with_members
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard, Policy
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, ConsumerKey, Diagnosis, Status
from nats_backpressure.queries.lookup import SubjectLookup
from nats_backpressure.runtime.health import Health
from nats_backpressure.runtime.view import ServiceView

NOW = Now(1000.0, 1_767_225_600.0)


P = "router_backpressure_"
HEALTHY = Health(
    {"observe": True, "answer": True}, True, 0.05, 0.1, 1.5, 0.0, 2, 3, {"ephemeral": 4}, 0, True, NOW.wall
)


class Clock:
    def now(self) -> Now:
        return NOW


class StubServiceView(ServiceView):
    def __init__(self) -> None:
        self.states: dict[str, SubjectState] = {}
        self.gone = set[str]()

    settings = Settings()  # type: ignore[assignment]
    looks: Mapping[str, StreamLook] = {}  # type: ignore[assignment]
    policies = ActivePolicies((), Guard(), trust_metadata=False)  # type: ignore[assignment]
    newest_read_at = NOW.mono  # type: ignore[assignment]
    stretch = 1.0  # type: ignore[assignment]

    @property
    def subjects(self) -> Mapping[str, SubjectState]:
        return self.states

    def reads(self, stream: str) -> bool:  # type: ignore[override]
        return stream == "S"

    def is_proved_elsewhere(self, subject: str) -> bool:
        return False

    def is_gone(self, subject: str) -> bool:
        return subject in self.gone

    def interval(self, subject: str) -> float:
        return 0.1

    def proofs(self, subject: str) -> Proofs:
        return NO_PROOFS

    def next_reading(self, subject: str) -> float:
        return NOW.mono

    def time_in(self, subject: str, now: Now) -> Mapping[str, float]:
        return {"inactive": 60.0, "active": 1.5}


def member(consumer: str = "c", age: float = 0.5, **reading: Any) -> Member:
    key = ConsumerKey("S", consumer)
    facts = {"pending": 5, "inflight": 2, "latency": None, "drain": None, **reading}
    at = Now(NOW.mono - age, NOW.wall - age)
    measured = Reading(key=key, at=at, **facts)  # type: ignore[arg-type]
    return Member(key, Policy(), status=Status.ACTIVE, reading=measured, proof=at.mono, pressure=1.5)


def state(subject: str, *members: Member, **record: Any) -> SubjectState:
    facts = {
        "epoch": "e",
        "seq": 1,
        "status": Status.ACTIVE,
        "admission": GatewayAdmission(Action.REJECT, None, 0.0, 30),
        **record,
    }
    state = SubjectState(subject, Policy(), NOW.mono, record=Record(subject=subject, **facts), revision=1)
    return with_members(state, {m.key: m for m in members})


class World:
    def __init__(self, max_subjects: int = 1000) -> None:
        self.view, self.metrics = StubServiceView(), Counters(max_subjects)
        self.health = HEALTHY
        self.page = StateCollector(
            self.view, SubjectLookup(self.view, keep=False).answer, self.metrics, Clock(), lambda now: self.health
        )
        self.metrics.expose(self.page.text)

    def decision(self, subject: str, role: str, action: str, seconds: float, would: str | None = None) -> None:
        self.metrics.decisions(subject, role, action, would, 1)
        self.metrics.durations(1, seconds)

    def watch(self, *states: SubjectState) -> None:
        self.view.states.update({s.subject: s for s in states})

    def text(self) -> str:
        return b"".join(self.metrics.page()).decode()

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """label values (in alphabetical order of the label) -> value, of every series of a name"""
        families = list(text_string_to_metric_families(self.text()))
        samples = [s for f in families for s in f.samples if s.name == name]
        result = {tuple(value for _, value in sorted(s.labels.items())): s.value for s in samples}
        assert len(result) == len(samples), "one series twice"
        return result

    def counted(self, name: str) -> dict[tuple[str, ...], float]:
        """Those of its series that are above 0."""
        return {labels: value for labels, value in self.values(name).items() if value}


def everything(world: World) -> None:
    firing = SubjectAlert("long-queue", "critical", "pending_above: 5000", "firing", NOW.wall)
    rates = {"arrival_rate": 7.0, "ack_rate": 5.0}
    stuck = member(p50=1.0, p95=2.0, p99=3.0, drain=4.0, diagnosis=Diagnosis.NOBODY_PULLING, **rates)
    assert stuck.reading is not None
    stuck = replace(stuck, marks=marks(stuck.policy, stuck.reading))
    world.watch(state("a.b", stuck, alerts=(firing,)))
    world.view.looks = {"S": StreamLook("S", "c", 1, 9, 9, fill=0.25), "T": StreamLook("T", "c", 1, 9, 9)}
    world.metrics.event("a.b", "backpressure_active")
    world.metrics.event("a.b", "recovery")
    world.metrics.transition("a.b", "inactive", "active")
    world.decision("a.b", "gateway", "reject", 0.0001)
    world.decision("a.b", "gateway", "continue", 0.0001, would="reject")
    world.metrics.dropped("reply_subject", 3)
    world.metrics.api_request("consumer_list", "ok", 0.01)
    world.metrics.rebuilt("answer")
    world.metrics.observed(0.01)
    world.metrics.received("T")
