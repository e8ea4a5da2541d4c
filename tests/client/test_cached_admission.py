"""The two answers that each subject has ready, and how its counts reach the states."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from nats_backpressure.client.admission import OPEN, LocalDecision
from nats_backpressure.client.cached_admission import CachedAdmission

DECISION = LocalDecision("continue", 1.0, 30.0, "warning", "known", None, 0.5, True, 100.0)


@pytest.mark.parametrize(
    ("action", "ratio", "admitted_as"),
    [("throttle", 0.5, "throttle"), ("reject", 0.0, "continue")],
    ids=["throttle", "reject, which admits critical requests only"],
)
def test_only_a_refusal_has_a_retry_after(action: str, ratio: float, admitted_as: str) -> None:
    cached = CachedAdmission("orders")
    cached.set(replace(DECISION, action=action, ratio=ratio), None, 100.0)
    assert cached.yes and (cached.yes.action, cached.yes.retry_after_seconds) == (admitted_as, 0.0)
    assert not cached.no and (cached.no.action, cached.no.retry_after_seconds) == (action, 30.0)


def test_before_anything_is_known_requests_are_admitted_one_by_one_so_that_they_are_counted() -> None:
    cached = CachedAdmission("orders")
    assert cached.decision is OPEN and cached.yes and not cached.always
