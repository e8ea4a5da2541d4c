"""How many messages must arrive before a consumer can be above a mark."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.core.model.member import Latch, Latches, Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.reading.headroom import headroom
from nats_backpressure.core.subject.member_update import evaluated
from nats_backpressure.policy.schema import AdmissionRule, AlertRule, InflightRule, PendingRule, Policy, When
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status

KEY = ConsumerKey("S", "c")


def member(pending: int = 0, inflight: int | None = 0, cap: int | None = 1000, policy: Policy = Policy()) -> Member:  # noqa: B008
    reading = Reading(KEY, Now(1.0, 1.0), pending, inflight, latency=0.0, drain=None, cap=cap)
    return evaluated(Member(KEY, policy, reading=reading, proof=1.0))


@pytest.mark.parametrize(
    ("one", "room"),
    [
        pytest.param(member(), 101, id="drain counts above the critical mark of 100"),
        pytest.param(member(pending=40), 61, id="what is pending uses it up"),
        pytest.param(member(pending=100), 1, id="at the mark the next message crosses it"),
        pytest.param(member(pending=101), 0, id="above it is hot"),
        pytest.param(member(inflight=450), 51, id="deliveries may bring it above the mark in flight"),
        pytest.param(member(pending=80, inflight=430), 0, id="what is pending may be in flight without any arrival"),
        pytest.param(member(inflight=450, cap=460), 0, id="the mark in flight follows the cap"),
        pytest.param(member(inflight=5, cap=5), 101, id="at a small cap only a stall counts"),
        pytest.param(member(inflight=None), 101, id="without acks nothing is in flight"),
        pytest.param(member(policy=Policy(inflight=InflightRule(1, 2, 2000))), 101, id="a mark above the cap"),
        pytest.param(member(policy=Policy(pending=PendingRule(0.001, 0.001, 0.001))), 1, id="any message is above it"),
        pytest.param(
            member(policy=Policy(alerts=(AlertRule("a", When(pending_above=7)),))), 8, id="an alert on pending"
        ),
        pytest.param(
            member(pending=1, policy=Policy(alerts=(AlertRule("a", When(inflight_above=4)),))), 4, id="and in flight"
        ),
        pytest.param(member(policy=Policy(admission=AdmissionRule("adaptive"))), 1, id="adaptive, at rest"),
        pytest.param(member(1, policy=Policy(admission=AdmissionRule("adaptive"))), 0, id="adaptive admission at work"),
        pytest.param(replace(member(), latches=Latches(pending=Latch(on=True))), 0, id="a latch that is set"),
        pytest.param(replace(member(), status=Status.WARNING), 0, id="a status above inactive"),
        pytest.param(Member(KEY, Policy()), 0, id="never read"),
    ],
)
def test_headroom_is_what_must_arrive_before_a_mark_is_crossed(one: Member, room: float) -> None:
    assert headroom(one) == room
    assert headroom(one, shedding=True) == 0
