"""What a gateway is answered, in every status, freshness and mode; and when it may retry."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.admission.adaptive import Shedding
from nats_backpressure.core.admission.gateway_admission import (
    LONGEST_DELAY,
    Priority,
    current_admission,
    for_priority,
    retry_delay,
)
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.policy.schema import AdmissionRule, Policy
from nats_backpressure.protocol.values import Action, Freshness, Status

KNOWN, STALE, UNKNOWN = Freshness.KNOWN, Freshness.STALE, Freshness.UNKNOWN
ACTIVE, WARNING, INACTIVE = Status.ACTIVE, Status.WARNING, Status.INACTIVE
ENFORCE, OBSERVE = Policy(), Policy(mode="observe")
OPEN, SHUT = GatewayAdmission(), GatewayAdmission(Action.REJECT, None, 0.0, 30)


def would(action: Action) -> GatewayAdmission:
    return GatewayAdmission(would=action)


@pytest.mark.parametrize(
    ("policy", "status", "freshness", "expected"),
    [
        pytest.param(ENFORCE, ACTIVE, KNOWN, SHUT, id="active rejects"),
        pytest.param(ENFORCE, WARNING, KNOWN, OPEN, id="warning continues"),
        pytest.param(ENFORCE, INACTIVE, KNOWN, OPEN, id="inactive continues"),
        pytest.param(ENFORCE, ACTIVE, STALE, SHUT, id="stale, the last status acts: active"),
        pytest.param(ENFORCE, INACTIVE, STALE, OPEN, id="stale, the last status acts: inactive"),
        pytest.param(OBSERVE, ACTIVE, KNOWN, would(Action.REJECT), id="observed, it would reject"),
        pytest.param(OBSERVE, WARNING, KNOWN, would(Action.CONTINUE), id="observed, it would continue"),
        pytest.param(
            Policy(retry_after_seconds=7),
            ACTIVE,
            KNOWN,
            GatewayAdmission(Action.REJECT, None, 0.0, 7),
            id="the policy's seconds",
        ),
    ],
)
def test_binary_admission(policy: Policy, status: Status, freshness: Freshness, expected: GatewayAdmission) -> None:
    assert current_admission(policy, status, freshness, OPEN, -1.0) == expected


CONTINUE, REJECT = Policy(on_unknown="continue"), Policy(on_unknown="reject")
WATCHED_REJECT = Policy(mode="observe", on_unknown="reject")


@pytest.mark.parametrize(
    ("policy", "last", "opening", "expected"),
    [
        pytest.param(ENFORCE, SHUT, -1.0, SHUT, id="hold repeats a rejection"),
        pytest.param(ENFORCE, SHUT, 0.0, SHUT, id="until its time is over"),
        pytest.param(
            ENFORCE, SHUT, 2.0, GatewayAdmission(Action.THROTTLE, None, 0.5, 30), id="then opens a quarter per second"
        ),
        pytest.param(ENFORCE, SHUT, 4.0, OPEN, id="and is open after four"),
        pytest.param(ENFORCE, SHUT, math.inf, OPEN, id="for ever"),
        pytest.param(ENFORCE, OPEN, -1.0, OPEN, id="hold repeats a continue"),
        pytest.param(ENFORCE, OPEN, math.inf, OPEN, id="never known continues"),
        pytest.param(CONTINUE, SHUT, 0.0, OPEN, id="continue at once"),
        pytest.param(REJECT, OPEN, -math.inf, SHUT, id="reject at once"),
        pytest.param(OBSERVE, would(Action.REJECT), -1.0, would(Action.REJECT), id="observed, hold would hold"),
        pytest.param(OBSERVE, would(Action.REJECT), 2.0, would(Action.THROTTLE), id="observed, it would open"),
        pytest.param(OBSERVE, would(Action.THROTTLE), 4.0, would(Action.CONTINUE), id="observed, it would be open"),
        pytest.param(OBSERVE, would(Action.CONTINUE), 2.0, would(Action.CONTINUE), id="observed, nothing to open"),
        pytest.param(WATCHED_REJECT, OPEN, -math.inf, would(Action.REJECT), id="observed, reject at once"),
        pytest.param(OBSERVE, SHUT, -1.0, would(Action.REJECT), id="the mode changed to observe meanwhile"),
        pytest.param(ENFORCE, would(Action.REJECT), -1.0, SHUT, id="the mode changed to enforce meanwhile"),
    ],
)
def test_the_unknown(policy: Policy, last: GatewayAdmission, opening: float, expected: GatewayAdmission) -> None:
    assert current_admission(policy, ACTIVE, UNKNOWN, last, opening) == expected


@pytest.mark.parametrize("freshness", [STALE, UNKNOWN])
def test_a_share_opens_from_where_it_was_stale_or_unknown(freshness: Freshness) -> None:
    adaptive, last = Policy(admission=AdmissionRule("adaptive")), GatewayAdmission(Action.THROTTLE, None, 0.2, 3)
    admission = [
        current_admission(adaptive, WARNING, freshness, last, t, Shedding(0.2, 3)) for t in (-5.0, 0.0, 1.0, 3.0, 3.2)
    ]
    assert [(v.action.value, v.admit_ratio, v.retry_after) for v in admission] == [
        ("throttle", 0.2, 3), ("throttle", 0.2, 3), ("throttle", 0.45, 3), ("throttle", 0.95, 3), ("continue", 1.0, 0),
    ]  # fmt: skip


def test_what_is_known_opens_once_its_hold_is_over() -> None:
    assert current_admission(ENFORCE, ACTIVE, KNOWN, OPEN, 0.0) == SHUT
    assert current_admission(ENFORCE, ACTIVE, KNOWN, OPEN, 2.0).admit_ratio == 0.5
    assert current_admission(ENFORCE, ACTIVE, KNOWN, OPEN, 5.0) == OPEN


@pytest.mark.parametrize("admission", [OPEN, SHUT, would(Action.REJECT)], ids=["open", "shut", "observed"])
def test_critical_requests_always_continue(admission: GatewayAdmission) -> None:
    assert for_priority(admission, ENFORCE, "critical") == (OPEN if admission.would is None else would(Action.CONTINUE))


@pytest.mark.parametrize(
    ("strategy", "attempt", "expected"),
    [
        pytest.param("constant", 1, 30_000, id="constant"),
        pytest.param("constant", 3, 30_000, id="constant stays"),
        pytest.param("linear", 1, 30_000, id="linear starts at the base"),
        pytest.param("linear", 3, 90_000, id="linear grows by the base"),
        pytest.param("exponential", 1, 30_000, id="exponential starts at the base"),
        pytest.param("exponential", 2, 60_000, id="exponential doubles"),
        pytest.param("exponential", 3, 120_000, id="and doubles"),
        pytest.param("exponential", 4, None, id="past the last attempt"),
    ],
)
def test_when_to_retry(strategy: str, attempt: int, expected: int | None) -> None:
    assert retry_delay(Policy(backoff_strategy=strategy), attempt, 30) == expected


def test_there_is_nothing_to_retry_after_a_continue() -> None:
    assert retry_delay(ENFORCE, 1, 0) is None


@given(st.sampled_from(["constant", "linear", "exponential"]), st.integers(1, 1000), st.integers(1, 86_400))
def test_no_delay_overflows(strategy: str, attempt: int, base: int) -> None:
    delay = retry_delay(Policy(backoff_strategy=strategy, max_retry_attempts=1000), attempt, base)
    assert delay is not None
    assert 1000 <= delay <= LONGEST_DELAY


SHARE = GatewayAdmission(Action.THROTTLE, None, 0.25, 3)
ADAPTIVE = Policy(admission=AdmissionRule("adaptive"))


@pytest.mark.parametrize(
    ("admission", "policy", "priority", "expected"),
    [
        pytest.param(SHUT, ENFORCE, "critical", OPEN, id="critical always continues"),
        pytest.param(would(Action.REJECT), OBSERVE, "critical", would(Action.CONTINUE), id="also where it is observed"),
        pytest.param(SHUT, ADAPTIVE, "low", SHUT, id="a rejection is for all others alike"),
        pytest.param(SHARE, ENFORCE, "low", SHARE, id="in binary mode all are alike"),
        pytest.param(SHARE, ADAPTIVE, "normal", SHARE, id="normal is the share itself"),
    ],
)
def test_what_a_priority_changes(
    admission: GatewayAdmission, policy: Policy, priority: Priority, expected: GatewayAdmission
) -> None:
    assert for_priority(admission, policy, priority) == expected


def test_low_priorities_are_shed_first() -> None:
    low, high = (for_priority(SHARE, ADAPTIVE, priority).admit_ratio for priority in ("low", "high"))
    assert low < SHARE.admit_ratio < high
