"""The load that a scenario offers over time, and the line in which a process reports."""

from __future__ import annotations

import json

import pytest

from nats_backpressure.demo.scenario import Scenario, print_report

SCENARIO = Scenario(workers=10, seconds_per_message=0.1, overload=3, seconds=8, calm=2, calm_load=0.5)


@pytest.mark.parametrize(
    ("at", "offered"),
    [
        pytest.param(0.0, 50.0, id="calm before"),
        pytest.param(2.0, 300.0, id="overload starts"),
        pytest.param(9.9, 300.0, id="overload lasts"),
        pytest.param(10.0, 50.0, id="calm after"),
    ],
)
def test_the_load_is_a_multiple_of_the_capacity_during_the_overload(at: float, offered: float) -> None:
    assert SCENARIO.capacity == 100.0
    assert SCENARIO.offered(at) == offered


def test_a_report_is_one_line_of_json_with_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(done=3)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line).items() >= {"done": 3}.items() and "at" in json.loads(line)
