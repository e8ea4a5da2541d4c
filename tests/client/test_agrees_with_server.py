"""The sidecar's answer to a request and the client's decision from the stored state are equal, at every age."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from msgspec.structs import replace

from nats_backpressure.client.admission import FreshnessLimits, local_decision
from nats_backpressure.core.admission.adaptive import Shedding
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.core.model.proofs import NO_PROOFS, Proofs
from nats_backpressure.core.status.freshness import limits
from nats_backpressure.core.subject.record import Writing
from nats_backpressure.core.subject.state import SubjectState, worst_member
from nats_backpressure.policy.schema import AdmissionRule, Policy
from nats_backpressure.protocol.messages import State
from nats_backpressure.protocol.requests import GatewayRequest
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action
from nats_backpressure.queries import serialize
from tests.fakes.view import NOW, OVERLOADED, SUBJECT, FakeServiceView, after, decision_service, member, subject

pytestmark = pytest.mark.no_cover  # whole lives in memory: traced they take four times as long

AGES = [0, 5, 6, 6.5, 7, 9.9, 10, 10.5, 12, 13.9, 14, 15, 15.5, 18, 19, 29.9, 30, 31, 44, 60, 61, 63.9, 64, 1000]
BINARY, ADAPTIVE = AdmissionRule(), AdmissionRule(mode="adaptive")


class View(FakeServiceView):
    """Its streams are read at the given interval."""

    def __init__(self, state: SubjectState, interval: float) -> None:
        super().__init__(state)
        self._interval = interval

    def interval(self, subject: str) -> float:
        return self._interval

    def proofs(self, subject: str) -> Proofs:
        return NO_PROOFS


def both(state: SubjectState, interval: float, now: Now) -> tuple[object, object]:
    """The sidecar's answer, and that of a gateway which read the state when it was proved: action, share, `would`,
    freshness."""
    view, record = View(state, interval), state.record
    assert record is not None
    asked = decision_service(view).decide_gateway(SUBJECT, GatewayRequest(), now)
    stored = msgspec.json.decode(serialize.state_value(state, Writing(record, 0, "n"), view, NOW), type=State)
    in_force = limits(10, 30, interval, view.settings.publish.heartbeat_seconds)
    worst = worst_member(state.members.values())
    assert worst is not None and worst.proof is not None
    same = FreshnessLimits(in_force.stale_after, in_force.unknown_after, in_force.interval)
    watched = local_decision(stored, worst.proof, same, None, now.mono)
    return (
        (asked.action, round(asked.admit_ratio, 3), asked.would, asked.freshness),
        (watched.action, round(watched.ratio, 3), watched.would, watched.freshness),
    )


@pytest.mark.parametrize("interval", [0.1, 5.0, 20.0])
@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("on_unknown", ["hold", "continue", "reject"])
def test_both_sides_agree_at_every_age(on_unknown: str, mode: str, interval: float) -> None:
    holds, modes = [0, 7, 10, 60], [BINARY, ADAPTIVE]
    for hold, admission, loaded, ratio, age in product(holds, modes, [True, False], [0.3, 1], AGES):
        policy = Policy(on_unknown=on_unknown, mode=mode, hold_seconds=hold, admission=admission)  # type: ignore[arg-type]
        state = subject(member(age=0.0, policy=policy, **(OVERLOADED if loaded else {})))
        if admission is ADAPTIVE:
            answer = GatewayAdmission() if ratio == 1 else GatewayAdmission(Action.THROTTLE, None, ratio, 5)
            if mode == "observe":
                answer = GatewayAdmission(would=answer.action)
            assert state.record is not None
            record = replace(state.record, admission=answer)
            state = replace(state, shedding=Shedding(ratio, 5 if ratio < 1 else 0), record=record)
        asked, watched = both(state, interval, after(age))
        assert asked == watched, f"{admission.mode}, hold {hold}, overloaded {loaded}, ratio {ratio}, {age} s"


@pytest.mark.parametrize("age", AGES)
def test_by_default_nothing_is_refused_on_evidence_older_than_fourteen_seconds(age: float) -> None:
    asked, watched = both(subject(member(age=0.0, **OVERLOADED)), 0.1, after(age))
    assert asked == watched
    assert (asked[0] == "continue") is (age >= 14)  # type: ignore[index]


def test_after_a_restart_a_state_without_any_proof_refuses_nothing() -> None:
    state = subject(member(age=0.0, **OVERLOADED))
    assert state.record is not None
    state = replace(state, record=replace(state.record, unknown=True), unproved_at_load=True)
    asked = decision_service(View(state, 0.1)).decide_gateway(SUBJECT, GatewayRequest(), after(0.5))
    assert (asked.action, asked.freshness) == ("continue", "unknown")
