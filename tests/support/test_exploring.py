"""Every property takes more examples when exploring, or has a reason not to; and the same ones for the same seed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.support import exploring

TESTS = Path(__file__).resolve().parents[1]


def test_no_property_sets_a_number_of_its_own() -> None:
    for path in TESTS.rglob("test_*.py"):
        for given in re.findall(r"\bmax_examples\s*=\s*([\w.]*)", path.read_text()):
            assert path == Path(__file__) or given == "examples", (
                f"{path}: max_examples=examples(...), or it never grows"
            )


@pytest.mark.parametrize(
    ("times", "most", "n"),
    [(0.5, None, 25), (0.5, 10, 25), (1, None, 50), (100, None, 5000), (100, 700, 700), (1, 10, 50)],
)
def test_exploring_multiplies_the_examples_or_uses_a_given_number(
    monkeypatch: pytest.MonkeyPatch, times: float, most: int | None, n: int
) -> None:
    monkeypatch.setattr(exploring, "TIMES", times)
    assert exploring.examples(50, most=most, why="each takes a second") == n


def test_a_test_with_fewer_examples_has_a_reason() -> None:
    with pytest.raises(ValueError, match="needs `why`"):
        exploring.examples(50, most=700)


@pytest.mark.no_cover
def test_what_is_marked_so_is_not_traced_in_a_worker_either() -> None:
    """`make test` runs this with coverage and in workers: traced, a simulation takes three times as long."""
    assert sys.gettrace() is None


@hypothesis.given(st.booleans())
def test_a_property_is_not_traced_either(whatever: bool) -> None:
    assert sys.gettrace() is None


def test_neither_a_local_database_nor_the_environment_chooses_the_examples() -> None:
    profile = hypothesis.settings.get_profile("house")
    assert (profile.database, profile.derandomize, profile.deadline) == (None, False, None)
    assert hypothesis.core.global_force_seed is not None
