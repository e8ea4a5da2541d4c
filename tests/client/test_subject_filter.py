"""Which states a client stores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.client import subject_filter
from nats_backpressure.client.subject_filter import MAX_WATCHED, SubjectFilter
from nats_backpressure.protocol.patterns import covers, overlap
from nats_backpressure.protocol.subjects import is_literal

SUBJECTS = st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3).map(".".join)
PATTERNS = st.one_of(SUBJECTS, SUBJECTS.map(lambda subject: f"{subject}.>"), st.just(">"))


def test_it_keeps_the_states_that_govern_a_given_subject() -> None:
    subjects = SubjectFilter()
    assert subjects.add(["orders.created", "bills.*"]) and not subjects.add(["bills.eu", "orders.created"])
    kept = ["orders.created", "orders.*", ">", "bills.eu", "bills.*", "*.eu"]
    assert [s for s in [*kept, "orders.gone", "bills.eu.x", "orders.*.x"] if subjects.keeps(s)] == kept
    with pytest.raises(ValueError, match="a pattern"):
        subjects.add(f"s{n}" for n in range(MAX_WATCHED + 1))
    assert not subjects.keeps("s1")


@given(given_=st.lists(st.lists(PATTERNS, max_size=3), max_size=3), watched=st.lists(PATTERNS, max_size=5))
def test_it_keeps_what_a_comparison_with_each_would_keep(given_: list[list[str]], watched: list[str]) -> None:
    subjects, added = SubjectFilter(), set[str]()
    for some in given_:
        subjects.add(some)
        added |= set(some)
        for one in watched:
            governs = {of for of in added if (covers(one, of) if is_literal(of) else overlap(of, one))}
            assert subjects.keeps(one) == bool(governs)
            assert subjects.covers(one) == any(covers(of, one) for of in added)


def test_a_write_of_the_bucket_is_not_compared_with_each_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counted(one: str, other: str) -> bool:
        nonlocal compared
        compared += 1
        return overlap(one, other)

    monkeypatch.setattr(subject_filter, "overlap", counted)
    subjects = SubjectFilter()
    subjects.add(f"orders.t{n}.>" for n in range(1000))
    for _ in range(3):
        assert subjects.keeps("orders.t7.created") and not subjects.keeps("orders.other.created")
        assert not subjects.keeps("bills.*")
    assert compared <= 1000, "the pattern alone, and once"
