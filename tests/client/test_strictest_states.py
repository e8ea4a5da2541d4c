"""Which state decides for a pattern: the strictest that overlaps it, found without looking at all of them each time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.client.strictest_states import KEPT_SECONDS, MAX_PATTERNS, StrictestStates
from nats_backpressure.client.subject_template import widened
from nats_backpressure.protocol.patterns import overlap, pattern_problem
from tests.client.test_state_mirror import Mirror
from tests.simulations.state_bucket import active, state

KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"status": "active", "action": "reject"},
    {"status": "warning", "action": "throttle", "admit_ratio": 0.25},
    {"status": "warning", "action": "throttle", "admit_ratio": 0.75},
    {"mode": "observe", "would": "reject"},
    {"on_unknown": "reject"},
)
SUBJECTS = ("a", "a.b", "a.c", "a.*", "a.>", "b.c", "*.c", ">")


@given(
    st.dictionaries(st.sampled_from(SUBJECTS), st.sampled_from(KINDS)),
    st.sampled_from(SUBJECTS),
    st.sampled_from([0.0, 5.0, 11.0, 60.0]),
)
def test_the_strictest_that_overlaps_decides_at_any_age(
    kinds: dict[str, dict[str, Any]], pattern: str, age: float
) -> None:
    mirror = Mirror()
    mirror.put(*(state(subject, **kind) for subject, kind in kinds.items()))
    mirror.now += age
    deciding = StrictestStates(mirror.states).deciding(pattern, mirror.now)
    those = [each for each in mirror.states.states.values() if overlap(pattern, each.subject)]
    assert (deciding is None) == (not those)
    if deciding is not None:
        strictest = max(mirror.states.decision(each, mirror.now).rank[:2] for each in those)
        assert mirror.states.decision(deciding, mirror.now).rank[:2] == strictest


def test_all_states_are_looked_at_once_for_a_while_whatever_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror()
    mirror.put(*(active(f"o.{n}") for n in range(50)))
    looks = []
    decide = mirror.states.decision

    def decision(one: Any, now: float) -> Any:
        looks.append(one)
        return decide(one, now)

    monkeypatch.setattr(mirror.states, "decision", decision)
    strictest = StrictestStates(mirror.states)
    for n in range(300):
        assert strictest.deciding(f"o.*.{n}" if n % 2 else "o.*", mirror.now) is (
            None if n % 2 else mirror.states.states["o.0"]
        )
        mirror.put(active(f"o.{1 + n % 49}"))
    assert len(looks) == 50
    mirror.now += KEPT_SECONDS
    strictest.deciding("o.*", mirror.now)
    assert len(looks) == 100


def test_what_the_deciding_state_says_or_that_it_is_gone_holds_at_once_and_another_state_soon() -> None:
    mirror = Mirror()
    mirror.put(active("o.a"), state("o.b"), state("o.c"))
    strictest = StrictestStates(mirror.states)

    def deciding(pattern: str = "o.*") -> str | None:
        found = strictest.deciding(pattern, mirror.now)
        return None if found is None else found.subject

    assert (deciding(), deciding("p.*")) == ("o.a", None)
    mirror.put(state("o.a"), active("o.b"))
    assert deciding() == "o.b"
    mirror.states.delete("o.b")
    mirror.put(active("o.c"))
    assert deciding() == "o.c"
    assert deciding("p.*") is None
    mirror.put(active("p.a"))
    mirror.now += KEPT_SECONDS
    assert deciding("p.*") == "p.a"


def test_the_patterns_are_bounded() -> None:
    strictest = StrictestStates(Mirror().states)
    for n in range(MAX_PATTERNS + 10):
        strictest.deciding(f"o.{n}.*", 1000.0)
    assert len(strictest._deciding) == MAX_PATTERNS and f"o.{MAX_PATTERNS + 9}.*" in strictest._deciding


@given(st.text(st.sampled_from("ab.*> é\n\ud800"), max_size=8) | st.text(max_size=2000))
def test_a_widened_subject_is_a_pattern(subject: str) -> None:
    assert pattern_problem(widened(subject)) is None


@pytest.mark.parametrize(
    ("subject", "pattern"),
    [
        pytest.param("orders." + "x" * 1100, "orders.>", id="a long token"),
        pytest.param("orders.eu." + "x." * 1000, None, id="many tokens"),
        pytest.param("x" * 2000, ">", id="the first token"),
        *(pytest.param("a" * n + ".b" * 20, None, id=f"a dot after {n}") for n in range(1015, 1027)),
    ],
)
def test_a_subject_that_is_too_long_is_widened_from_where_it_is(subject: str, pattern: str | None) -> None:
    assert pattern is None or widened(subject) == pattern
    assert pattern_problem(widened(subject)) is None
    assert subject.startswith(widened(subject).removesuffix(">"))
