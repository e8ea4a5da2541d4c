"""Simulates adaptive admission in each scenario and prints the results: `python -m benchmarks.adaptive [PART OF NAME]`.

Arithmetic with seeded random numbers, so the results are the same everywhere. `goodput`: the smallest share of its
capacity that the worker used while more was offered. Waits (publish to ack) and backlogs are in units of the target.
`settled` starts 15 s after the overload. `moves`: the most rises and falls of the status in any minute.
"""

from __future__ import annotations

import itertools
import sys

from benchmarks.adaptive_simulation import CALM, HELD, OVERLOAD, ROUGH, Scenario, Simulation

SETTLED = OVERLOAD + 15.0


def row(name: str, scenario: Scenario) -> str:
    simulation = Simulation(scenario).run()
    overloaded = any(load > 1 for _, load in scenario.load)
    goodput = f"{simulation.busy(OVERLOAD):7.3f}" if overloaded else "      -"
    waits = f"{simulation.wait(OVERLOAD):8.2f} {simulation.wait(SETTLED):8.2f}"
    backlogs = f"{simulation.highest(0):8.2f} {simulation.highest(SETTLED):8.2f}"
    changes = sum(a != b for (_, a), (_, b) in itertools.pairwise(simulation.ratios)) / scenario.seconds
    rises, falls = simulation.moves()
    lost = "" if simulation.whole() else "  LOST"
    return f"{name:42}{goodput} {waits} {backlogs}  {rises} / {falls} {changes:7.2f}{lost}"


def main(part: str = "") -> None:
    print(f"{'':42}goodput      p99  settled  backlog  settled  moves  writes/s")
    for name, scenario in (CALM | HELD | ROUGH).items():
        if part in name:
            print(row(name, scenario))


if __name__ == "__main__":
    main(*sys.argv[1:2])
