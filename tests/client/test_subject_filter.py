"""Which states a client stores."""

from __future__ import annotations

import pytest

from nats_backpressure.client.subject_filter import MAX_WATCHED, SubjectFilter


def test_it_keeps_the_states_that_govern_a_given_subject() -> None:
    subjects = SubjectFilter()
    assert subjects.add(["orders.created", "bills.*"]) and not subjects.add(["bills.eu", "orders.created"])
    kept = ["orders.created", "orders.*", ">", "bills.eu", "bills.*", "*.eu"]
    assert [s for s in [*kept, "orders.gone", "bills.eu.x", "orders.*.x"] if subjects.keeps(s)] == kept
    with pytest.raises(ValueError, match="a pattern"):
        subjects.add(f"s{n}" for n in range(MAX_WATCHED + 1))
    assert not subjects.keeps("s1")
