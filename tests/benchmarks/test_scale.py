"""The simulation of benchmarks/scale.py behaves as what it stands for; its page shows what was computed."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ElementTree
from statistics import median

import pytest

from benchmarks import scale_page, scale_simulation
from benchmarks.figures import Figure, percentiles
from benchmarks.page import markdown
from benchmarks.results import RESULTS, Machine, Results, Run, load
from benchmarks.scale import ACTIVITIES, SCALES, case, case_name
from benchmarks.scale_costs import with_results
from benchmarks.scale_simulation import Costs, Deployment, Outcome, VirtualLoop, simulate

pytestmark = pytest.mark.no_cover  # whole lives in memory: traced they take four times as long

SMALL = Deployment(consumers=400, streams=2)


def outcome(p99: float, client: float = 0.1) -> Outcome:
    return Outcome((p99 / 2, p99), 10.0, 20.0, 0.1, client, 2.0**26, 1.0)


def test_virtual_time_leaps_to_the_next_timer() -> None:
    async def hour() -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7))
        return loop.time() - began

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        assert runner.run(hour()) == pytest.approx(3600)


def test_consumers_that_are_not_simulated_change_neither_delay_nor_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    few = simulate(SMALL, Costs(), 10)
    monkeypatch.setattr(scale_simulation, "SHOWN", 200)
    all_of_them = simulate(SMALL, Costs(), 10)
    assert median(few.delays) == pytest.approx(median(all_of_them.delays), rel=0.3)
    assert few.requests == pytest.approx(all_of_them.requests, rel=0.2)
    assert few.server == pytest.approx(all_of_them.server, rel=0.2)


def test_with_the_whole_intake_the_first_crossing_is_seen_at_the_same_time() -> None:
    read = simulate(SMALL, Costs(), 1, walks=1)
    evaluated = simulate(SMALL, Costs(), 1, walks=1, evaluate=True)
    assert len(evaluated.delays) == 1
    assert evaluated.delays == pytest.approx(read.delays, abs=0.2), "the same look sees it, or the next one"


def test_every_crossing_is_seen_and_costs_requests() -> None:
    still = simulate(SMALL, Costs(), 0, most_seconds=10.0)
    moved = simulate(SMALL, Costs(), 10)
    assert still.delays == ()
    assert len(moved.delays) == 10
    assert moved.requests > still.requests
    assert moved.requests <= SMALL.requests_per_second * 1.1


def test_replicas_split_streams_and_budget() -> None:
    alone = simulate(SMALL, Costs(), 0, most_seconds=30.0)
    shared = simulate(Deployment(consumers=800, streams=4, replicas=2, requests_per_second=100.0), Costs(), 0)
    assert shared.seconds > 0
    assert shared.server == pytest.approx(2 * alone.server, rel=0.6)
    assert shared.memory > alone.memory + Costs().client_base_bytes


def test_costs_come_from_the_other_benchmarks_where_they_ran() -> None:
    figures = {"decoding a listed consumer": Figure(4.0, "us of CPU")}
    costs = with_results(Costs(client_idle=1e-6), figures)
    assert (costs.client_decode, costs.client_idle) == (pytest.approx(4e-6), 1e-6)


def test_one_replica_is_enough_up_to_the_largest_size_within_the_bound() -> None:
    idle, *others = ACTIVITIES
    delays = {1000: 0.2, 10_000: 0.9, 100_000: 3.0}
    figures = {
        case_name(consumers, streams, idle): case(outcome(delays[consumers]))
        for consumers, streams, replicas in SCALES["full"].alone
        if consumers in delays
    }
    assert f"{idle}: 10,000;" in scale_page.enough(figures)
    assert all(f"{what}: fewer than 1,000" in scale_page.enough(figures) for what in others)


def test_a_row_has_the_fewest_replicas_that_reach_a_target() -> None:
    consumers, streams = SCALES["full"].shared[0]
    p99 = {1: 6.0, 2: 4.0, 5: 0.5, 10: 0.4}
    figures = {case_name(consumers, streams, f"{n} replicas"): case(outcome(each)) for n, each in p99.items()}
    _, rows = scale_page.part("replicas", figures)
    assert [row[2] for row in rows] == ["2", "5"]


@pytest.mark.parametrize("part", ["measured", "alone", "replicas", "costs"])
def test_tables_have_a_cell_for_each_column(part: str) -> None:
    figures = {"computed: a": Figure(1.0, "s", 2.0, "measured"), "server: b": Figure(1.0, "us")}
    for consumers, streams, _ in SCALES["full"].alone:
        figures |= {case_name(consumers, streams, what): case(outcome(1.0)) for what in ACTIVITIES}
    for consumers, streams in SCALES["full"].shared:
        figures[case_name(consumers, streams, "100 replicas")] = case(outcome(0.1), "server_share 0.05")
    header, rows = scale_page.part(part, figures)
    assert rows
    assert all(len(row) == len(header) for row in rows)
    assert markdown(header, rows)


def test_what_was_computed_stands_beside_what_was_measured_last() -> None:
    figures = {f"computed: {name}": Figure(1.0, "s", 2.0, "measured") for name in ("1,000 consumers, seen", "3 idle")}
    newest = scale_page.beside_newest(figures, {"seen": Figure(5.0, "s"), "3 idle": Figure(6.0, "s")})
    assert [row[1] for row in scale_page.part("measured", newest)[1]] == ["5 s", "6 s"]


def test_the_plot_is_drawn_with_and_without_results() -> None:
    figures = {case_name(1000, 4, "idle"): case(outcome(0.2))}
    nobody = Machine("a processor", 2, "Linux", "3.11", "v2", {})
    for runs in ({}, {"scale": Run("2026-11-26T00:00:00Z", (0, 0, 0), 1.0, figures)}):
        ElementTree.fromstring(scale_page.plot(Results("full", nobody, runs), None))
    assert percentiles(outcome(0.2).delays)["p99"] == 0.2


@pytest.mark.parametrize(("consumers", "streams"), SCALES["full"].measured)
def test_the_page_was_computed_with_the_intervals_of_this_code(consumers: int, streams: int) -> None:
    """After a change of how often anything is read: `python -m benchmarks scale`, then `make docs`."""
    results = load(RESULTS)
    assert results is not None
    written = results.runs["scale"].figures[
        f"computed: {consumers:,} idle consumers in {streams} streams: API requests"
    ]
    now = simulate(Deployment(consumers, streams), Costs(), 0, walks=1, most_seconds=30.0)
    assert now.requests == pytest.approx(written.value, rel=0.05)
