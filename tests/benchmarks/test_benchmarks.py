"""Each benchmark runs in its smallest size, and what it returns can be stored, printed and drawn. Never its values."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import page, results
from benchmarks.__main__ import NAMES, run
from benchmarks.figures import Figure, aim_text, percentiles
from benchmarks.results import Machine, Results, Run

ROOT = Path(__file__).parents[2]
NOBODY = Machine("a processor", 2, "Linux", "3.11", "v2", {})


def of(**figures: Figure) -> Results:
    return Results("tiny", NOBODY, {"one": Run("2026-11-26T00:00:00Z", (0, 0, 0), 1.0, figures)})


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_yields_figures(name: str, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    command = [sys.executable, "-m", "benchmarks", name, "--size", "tiny", "--out", str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert ran.returncode == 0, ran.stderr
    measured = results.load(out)
    assert measured is not None
    figures = measured.runs[name].figures
    assert figures
    assert all(figure.unit for figure in figures.values())
    assert all(figure.peer for figure in figures.values() if figure.beside is not None)
    assert all(label in ran.stdout for label, figure in figures.items() if figure.aim is not None)


def test_a_benchmark_that_fails_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("nothing", "tiny") is None
    assert "nothing FAILED: exit code 1; run it alone: python -m benchmarks.nothing" in capfd.readouterr().err


def test_an_aim_is_of_the_value_or_of_the_ratio() -> None:
    assert Figure(9.0, "ms", aim=10.0).reached
    assert not Figure(11.0, "ms", aim=10.0).reached
    assert Figure(80.0, "1/s", 100.0, "echo", aim=0.8, more_is_better=True, aim_of_ratio=True).reached
    assert not Figure(79.0, "1/s", 100.0, "echo", aim=0.8, more_is_better=True, aim_of_ratio=True).reached
    assert Figure(79.0, "1/s").reached is None
    assert aim_text(Figure(80.0, "1/s", 100.0, "echo", aim=0.8, more_is_better=True, aim_of_ratio=True)) == (
        "at least 0.8 of it"
    )


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": 3.0, "p99": 3.0, "worst": 3.0}


def test_a_row_shows_the_figure_before_and_now() -> None:
    before = of(a=Figure(30.0, "ms"))
    now = of(a=Figure(20.0, "ms", 40.0, "echo", aim=10.0), b=Figure(1.0, "s"))
    assert page.aim_rows(now, before) == [["a", "30 ms", "20 ms", "40 (echo)", "0.5", "at most 10 ms", "no"]]


@pytest.mark.parametrize("file", page.PLOTS)
def test_plots_are_drawn_without_values_from_before_and_without_finite_ones(file: str) -> None:
    spread = {"p50": 1.0, "p99": float("inf"), "worst": float("inf")}
    now = {
        "none": Figure(0.0, "ms", aim=10.0),
        "missed": Figure(float("inf"), "ms", aim=10.0),
        "an overload is seen after, all": Figure(1.0, "ms", spread=spread),
    }
    ElementTree.fromstring(page.PLOTS[file](of(**now), None))


def test_the_plots_of_the_page_are_those_of_the_results() -> None:
    drawn = page.plots()
    assert {file: (ROOT / "docs" / file).read_text() for file in drawn} == drawn, "run `make docs`"
