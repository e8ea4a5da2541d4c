"""What the benchmark of several replicas makes of its measurements. Never their values."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import results
from benchmarks.figures import Figure
from benchmarks.replicas import Case, Cost, Costs, cost_figures
from benchmarks.results import Run


def test_each_case_is_beside_one_replica_on_as_many_streams() -> None:
    costs = {
        Case(1, 8): Costs(100.0, 0.1, [Cost(8, 0.2)], 1.0),
        Case(3, 8): Costs(150.0, 0.11, [Cost(2, 0.1), Cost(3, 0.1), Cost(3, 0.2)], 1.2),
        Case(1, 1): Costs(10.0, 0.1, [Cost(1, 0.2)], 1.0),
        Case(2, 1): Costs(11.0, 0.2, [Cost(0, 0.1), Cost(1, 0.2)], 1.0),
    }
    figures = cost_figures(costs)
    reached = {name: figure.reached for name, figure in figures.items() if figure.aim is not None}
    assert reached == {
        "3 replicas on 8 streams: API requests": False,
        "3 replicas on 8 streams: writes to the state bucket": True,
        "3 replicas on 8 streams: server": True,
        "2 replicas on 1 stream: API requests": True,
        "2 replicas on 1 stream: writes to the state bucket": True,
        "2 replicas on 1 stream: server": False,
        "2 replicas on 1 stream: the one that reads least": False,
    }
    assert figures["3 replicas on 8 streams: server"].aim == pytest.approx(12.4)
    assert figures["3 replicas on 8 streams: the one that reads least"].note == "streams that each reads: 2, 3, 3"
    assert figures["1 replica on 1 stream: sidecar"] == Figure(20.0, "% of a core")


def test_a_run_of_all_others_keeps_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results.json"
    measured = Run("2026-11-27T00:00:00Z", (0, 0, 0), 1.0, {"one": Figure(1.0, "s")}, "c")
    ran: list[str] = []

    def run(name: str, size: str) -> Run:
        ran.append(name)
        return measured

    monkeypatch.setattr(bench, "run", run)
    for names in (["replicas"], []):
        monkeypatch.setattr(sys, "argv", ["bench", *names, "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            bench.main()
        assert ended.value.code == 0
    assert ran[0] == "replicas" and "replicas" not in ran[1:] and len(ran) == len(bench.NAMES)
    assert list(json.loads(out.read_bytes())["runs"]) == list(bench.NAMES)
    assert results.load(out) is not None
