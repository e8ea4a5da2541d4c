"""Consumers of one subject with different policies: gateways get the strictest answer that an enforced one gives."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from msgspec.structs import replace

from nats_backpressure.core.admission.adaptive import Shedding
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.admitting import admitting, steering
from nats_backpressure.core.subject.inputs import ConsumerJoined, ConsumerRead, Tick
from nats_backpressure.core.subject.record import Record
from nats_backpressure.policy.schema import AdmissionRule, Policy
from nats_backpressure.protocol.requests import GatewayRequest
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, ConsumerKey, Status
from tests.core.subject.test_step import World
from tests.fakes.view import NOW, SUBJECT, FakeServiceView, decision_service, member, subject

ENFORCE = Policy(alert_on_active=False)
OTHER = Policy(alert_on_active=False, retry_after_seconds=20)
OBSERVE = Policy(alert_on_active=False, mode="observe")
ADAPTIVE = Policy(alert_on_active=False, admission=AdmissionRule(mode="adaptive"))
TRIAL = Policy(alert_on_active=False, mode="observe", admission=AdmissionRule(mode="adaptive"))
POLICIES = {"enforce": ENFORCE, "other": OTHER, "observe": OBSERVE, "adaptive": ADAPTIVE, "trial": TRIAL}
LOADS: dict[str, dict[str, Any]] = {
    "calm": {"pending": 0},
    "more pressure": {"pending": 900},
    "active": {"pending": 2_000, "inflight": 600},
    "far more": {"pending": 15_000, "inflight": 700},
}
LENIENT = {Action.CONTINUE: 0, Action.THROTTLE: 1, Action.REJECT: 2}


def stored(*consumers: tuple[Policy, str]) -> GatewayAdmission:
    """What is stored after each consumer had this load for a while."""
    world = World(policy=Policy(alert_on_active=False))
    keys = [ConsumerKey("S", f"c{n}") for n in range(len(consumers))]
    for key, (policy, _) in zip(keys, consumers, strict=True):
        world.feed(ConsumerJoined(key, policy))
    for _ in range(3):
        world.at += 0.1
        for key, (_, load) in zip(keys, consumers, strict=True):
            reading = Reading(key, Now(world.at, world.at), latency=0.0, drain=None, **{"inflight": 0} | LOADS[load])
            world.feed(ConsumerRead(reading))
        world.perform()
    return world.stored.admission


@pytest.mark.parametrize("policies", list(product(POLICIES, repeat=2)), ids="-".join)
def test_the_answer_is_the_strictest_that_an_enforced_consumer_gets_alone(policies: tuple[str, str]) -> None:
    one, two = (POLICIES[name] for name in policies)
    for loads in product(LOADS, repeat=2):
        pairs = [(one, loads[0]), (two, loads[1])]
        alone = [stored(pair) for pair in pairs if pair[0].mode == "enforce"] or [stored(pair) for pair in pairs]
        strictest = max(alone, key=lambda a: (LENIENT[a.would or a.action], -a.admit_ratio, a.retry_after))
        assert stored(*pairs) == strictest, loads


@pytest.mark.parametrize("load", LOADS)
def test_a_dry_run_changes_nothing_for_gateways_of_its_neighbour(load: str) -> None:
    for own in LOADS:
        state = subject(member("real", **LOADS[own]), member("trial", policy=OBSERVE, **LOADS[load]))
        alone = stored((Policy(alert_on_active=False), own))
        state = subject(*state.members.values(), record=_with_admission(state.record, alone))
        decision = decision_service(FakeServiceView(state)).decide_gateway(SUBJECT, GatewayRequest(), NOW)
        assert (decision.action, decision.would) == (alone.action.value, None), own


def test_a_dry_run_that_is_read_keeps_no_refusal_of_an_unread_neighbour() -> None:
    real = member("real", age=60.0, **LOADS["active"])
    trial = member("trial", policy=OBSERVE, **LOADS["far more"])
    state = subject(real, trial)
    state = subject(real, trial, record=_with_admission(state.record, GatewayAdmission(Action.REJECT, None, 0.0, 30)))
    assert decision_service(FakeServiceView(state)).decide_gateway(SUBJECT, GatewayRequest(), NOW).action == "continue"


def test_one_that_rejects_what_is_unknown_does_so_for_the_subject_unless_it_is_a_dry_run() -> None:
    busy, strict = member("a", **LOADS["active"]), Policy(on_unknown="reject")
    chosen = admitting([busy, member("b", policy=strict)], Shedding())
    assert chosen is not None
    assert (chosen.policy.on_unknown, chosen.status) == ("reject", Status.ACTIVE)
    chosen = admitting([busy, member("b", policy=Policy(on_unknown="reject", mode="observe"))], Shedding())
    assert chosen is not None
    assert chosen.policy.on_unknown == "hold"


def test_only_consumers_with_adaptive_policies_steer_the_share() -> None:
    members = [member("a", policy=ADAPTIVE), member("b", policy=ENFORCE), member("c", policy=TRIAL)]
    assert [m.key.consumer for m in steering(members)] == ["a"]
    assert [m.key.consumer for m in steering(members[2:])] == ["c"]
    assert steering(members[1:]) == []


FAST, SLOW = ConsumerKey("S", "fast"), ConsumerKey("S", "slow")


class Beside:
    """An adaptive consumer that is offered 500 a second and works 100, beside one with another policy."""

    def __init__(self, policy: Policy) -> None:
        self.world, self.backlog, self._delivered, self._in_force = World(policy=ADAPTIVE), 0.0, 0.0, 1.0
        self.world.feed(ConsumerJoined(FAST, ADAPTIVE))
        self.world.feed(ConsumerJoined(SLOW, policy))

    @property
    def now(self) -> Now:
        return Now(self.world.at, self.world.at)

    @property
    def record(self) -> Record:
        assert self.world.stored is not None
        return self.world.stored

    def run(self, seconds: float, load: dict[str, Any] | None, *, shedding: bool = True) -> list[float]:
        """The shares that are stored meanwhile. `load` is that of the other one, None if it is not read; `shedding`:
        whether the adaptive one is."""
        ratios = []
        for _ in range(round(seconds * 5)):
            ratios.append(self.record.admission.admit_ratio if self.world.stored else 1.0)
            self.backlog, self._in_force = self.backlog + 100 * self._in_force, ratios[-1]
            done = min(self.backlog, 20.0)
            self.backlog, self._delivered = self.backlog - done, self._delivered + done
            self.world.at += 0.2
            self.world.swept = self.world.at
            if shedding:
                more = {"capacity": 100.0, "delivered_consumer": round(self._delivered)}
                reading = Reading(FAST, self.now, round(self.backlog), 10, 100.0, self.backlog / 100, **more)
                self.world.feed(ConsumerRead(reading))
            if load is not None:
                reading = Reading(SLOW, self.now, latency=0.0, drain=None, **{"inflight": 0} | load)
                self.world.feed(ConsumerRead(reading))
            self.world.feed(Tick())
            self.world.perform()
        return ratios


@pytest.mark.parametrize("pending", [0, 700, 950, 1_100])
@pytest.mark.parametrize("neighbour", ["enforce", "observe", "trial"])
def test_a_neighbour_of_another_mode_does_not_disturb_an_adaptive_share(neighbour: str, pending: int) -> None:
    beside = Beside(POLICIES[neighbour])
    beside.run(15, {"pending": pending})
    ratios = beside.run(15, {"pending": pending})
    assert 0.15 < min(ratios) <= max(ratios) < 0.25, "500 a second are offered, and 100 worked"
    assert 150 < beside.backlog < 250


@pytest.mark.parametrize("load", ["active", "calm"])
def test_a_dry_run_that_cannot_be_read_opens_no_share_of_its_neighbour(load: str) -> None:
    beside = Beside(OBSERVE)
    beside.run(15, LOADS[load])
    for _ in range(8):
        assert max(beside.run(10, None)) < 0.25
        assert not beside.record.stale and not beside.record.unknown
        service = decision_service(FakeServiceView(beside.world.state))
        assert service.decide_gateway("s", GatewayRequest(), beside.now).action == "throttle"


@pytest.mark.parametrize("load", ["active", "calm"])
def test_a_dry_run_that_is_read_proves_no_share_of_its_neighbour(load: str) -> None:
    """Those that watch the state count the age of the share from when it is stored as stale."""
    beside = Beside(OBSERVE)
    beside.run(15, LOADS[load])
    beside.run(12, LOADS[load], shedding=False)
    assert beside.record.stale


def _with_admission(record: Any, admission: GatewayAdmission) -> Any:
    return replace(record, admission=admission)
