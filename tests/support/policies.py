"""Policies as tests write them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from nats_backpressure.policy.parse import PolicyEntry, parse_entry

SIGNALS = ("pending", "inflight", "latency_p95", "drain_seconds")
MARKS = ("warn", "critical", "overload")


def entry(*subjects: str, **fields: Any) -> PolicyEntry:
    parsed, problems = parse_entry({"subjects": list(subjects), **fields})
    assert parsed is not None, problems
    return parsed


def _ordered(given: dict[str, float]) -> dict[str, float]:
    return dict(zip([name for name in MARKS if name in given], sorted(given.values()), strict=True))


def entries(*patterns: str) -> st.SearchStrategy[PolicyEntry]:
    """Entries for some of the patterns, for all or some consumers, with any marks in order."""
    marks = st.dictionaries(st.sampled_from(MARKS), st.integers(1, 100) | st.floats(0.5, 100)).map(_ordered)
    return st.builds(
        lambda subjects, consumers, fields: entry(*subjects, consumers=consumers, **fields),
        st.lists(st.sampled_from(patterns), min_size=1, max_size=2, unique=True),
        st.sampled_from([["*"], ["r*"], ["r1", "x"]]),
        st.dictionaries(st.sampled_from(SIGNALS), marks),
    )
