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
from nats_backpressure.core.subject.inputs import ConsumerJoined, ConsumerRead
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


@pytest.mark.parametrize("pending", [0, 700, 950, 1_100])
@pytest.mark.parametrize("neighbour", ["enforce", "observe", "trial"])
def test_a_neighbour_of_another_mode_does_not_disturb_an_adaptive_share(neighbour: str, pending: int) -> None:
    ratios, backlog = _shed_beside(POLICIES[neighbour], pending)
    assert 0.15 < min(ratios) <= max(ratios) < 0.25, "500 a second are offered, and 100 worked"
    assert 150 < backlog < 250


def _shed_beside(policy: Policy, pending: int) -> tuple[list[float], float]:
    """The shares after 10 s, and the last backlog, of an adaptive consumer beside one with a steady backlog."""
    fast, slow = ConsumerKey("S", "fast"), ConsumerKey("S", "slow")
    world = World(policy=ADAPTIVE)
    world.feed(ConsumerJoined(fast, ADAPTIVE))
    world.feed(ConsumerJoined(slow, policy))
    backlog, delivered, in_force, ratios = 0.0, 0.0, 1.0, []
    for n in range(150):
        ratio = world.stored.admission.admit_ratio if n else 1.0
        backlog += 100 * in_force
        in_force = ratio
        done = min(backlog, 20.0)
        backlog, delivered = backlog - done, delivered + done
        world.at += 0.2
        now, more = Now(world.at, world.at), {"capacity": 100.0, "delivered_consumer": round(delivered)}
        world.feed(ConsumerRead(Reading(fast, now, round(backlog), 10, 100.0, backlog / 100, **more)))
        world.feed(ConsumerRead(Reading(slow, now, pending, 0, 0.0, None)))
        world.perform()
        ratios += [ratio] if n >= 75 else []
    return ratios, backlog


def _with_admission(record: Any, admission: GatewayAdmission) -> Any:
    return replace(record, admission=admission)
