"""Measures what PullGate costs a consumer: `python -m benchmarks gate`, or `make bench-gate`.

For each number of workers, size of batch and mark of in flight, the same messages go to workers with a plain fetch and
to workers behind gates, side by side: first a steady half of what they can do, then a backlog. A mark below the number
of workers is left out: there it is the mark that limits the rate. Some cases have a plain fetch on both sides, to show
how far equal sides differ on this machine.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

from msgspec import Struct

from benchmarks.figures import Figure, Figures, Size, command, progress, rounds
from benchmarks.gated_workers import Case, Seconds, Side, create, measure
from benchmarks.processes import SidecarProcess, nats_server

AT_ONCE = 3
"""Cases that run side by side: with more of them the workers of all, in one process, delay each other."""
LEAST_RATE, MOST_P95, MOST_REFUSED = 0.98, 1.2, 5.0
"""Of that of the plain fetch; percent of the questions in calm."""
RATE, P95, INFLIGHT, REFUSED = "drained", "latency p95 in calm", "in flight", "questions answered 0 in calm"
WORST, MEDIAN, EQUAL = "PullGate, the worst case", "PullGate, the median case", "plain fetch beside plain fetch"
PLAIN = "plain fetch"


class Scale(Struct, frozen=True):
    marks: dict[int, tuple[float, ...]]
    """Workers -> marks, in multiples of the workers."""
    batches: tuple[int, ...]
    equal: tuple[tuple[int, int], ...]
    """Workers and batch of the cases without gates."""
    seconds: Seconds


SCALES: dict[Size, Scale] = {
    "full": Scale(
        {1: (1, 10), 5: (1, 1.5, 2, 10), 20: (1, 1.5, 2, 10)},
        (1, 10, 100),
        ((1, 1), (1, 10), (5, 1), (5, 10), (20, 1), (20, 10)),
        Seconds(3.0, 14.0, 8.0),
    ),
    "quick": Scale({5: (1, 2), 20: (1,)}, (1, 10), ((5, 1),), Seconds(2.0, 6.0, 6.0)),
    "tiny": Scale({2: (2,)}, (3,), ((1, 1),), Seconds(0.5, 1.0, 1.0)),
}

Measured = dict[Case, tuple[Side, Side]]


def cases_of(scale: Scale) -> list[Case]:
    gated = [
        Case(workers, batch, round(mark * workers))
        for (workers, marks), batch in itertools.product(scale.marks.items(), scale.batches)
        for mark in marks
    ]
    return gated + [Case(workers, batch, None) for workers, batch in scale.equal]


def _together(cases: list[Case]) -> list[list[Case]]:
    """Groups that run at once, each with as many large and small cases as any other."""
    groups = -(-len(cases) // AT_ONCE)
    return [cases[n::groups] for n in range(groups)]


def _policy(case: Case) -> dict[str, object]:
    inflight = {"warn": case.mark, "critical": case.mark, "overload": case.mark}
    return {"subjects": [case.name], "inflight": inflight, "latency_p95": {"overload": 1_000_000}}


async def _run(scale: Scale) -> Measured:
    measured: Measured = {}
    cases = cases_of(scale)
    async with nats_server() as (server, client):
        for case in cases:
            await create(client, case)
        gated = [case for case in cases if case.mark]
        watch = [{"stream": case.name, "consumers": ["gated"]} for case in gated]
        async with SidecarProcess(server.url, {"policies": [_policy(case) for case in gated], "watch": watch}):
            for some in _together(cases):
                sides = await asyncio.gather(*(measure(server.url, case, scale.seconds) for case in some))
                for case, (plain, beside) in zip(some, sides, strict=True):
                    measured[case] = plain, beside
                    progress(
                        f"{case.text}: {beside.rate:.1f}/s of {plain.rate:.1f}/s, "
                        f"p95 {1000 * beside.p95:.1f} of {1000 * plain.p95:.1f} ms, "
                        f"in flight at most {beside.most}, {beside.refused} of {beside.asked} answered 0"
                    )
    return {case: measured[case] for case in cases}


def figures_of(measured: Measured) -> Figures:
    """Those with an aim, over all cases; what equal sides show; then each case."""
    gated = {case: sides for case, sides in measured.items() if case.mark}
    equal = {case: sides for case, sides in measured.items() if not case.mark}
    rates = {case: _beside(sides, _rate, "1/s") for case, sides in gated.items()}
    waits = {case: _beside(sides, _p95, "ms") for case, sides in gated.items()}
    flights = {case: _of_mark(case, second) for case, (_, second) in gated.items()}
    return {
        f"{WORST}: {RATE}": _worst(rates, min, LEAST_RATE),
        f"{MEDIAN}: {RATE}": _median(rates),
        f"{WORST}: {P95}": _worst(waits, max, MOST_P95),
        f"{MEDIAN}: {P95}": _median(waits),
        f"{WORST}: {INFLIGHT}": _worst(flights, max, 1.0),
        f"PullGate: {REFUSED}": _refused([second for _, second in gated.values()]),
        **_equal(equal, _rate, RATE, "1/s"),
        **_equal(equal, _p95, P95, "ms"),
        **{f"{case.text}: {RATE}": figure for case, figure in rates.items()},
        **{f"{case.text}: {P95}": figure for case, figure in waits.items()},
        **{f"{case.text}: {INFLIGHT}": figure for case, figure in flights.items()},
    }


def _rate(side: Side) -> float:
    return side.rate


def _p95(side: Side) -> float:
    return 1000 * side.p95


def _beside(sides: tuple[Side, Side], value: Callable[[Side], float], unit: str) -> Figure:
    return Figure(value(sides[1]), unit, value(sides[0]), PLAIN)


def _of_mark(case: Case, side: Side) -> Figure:
    return Figure(side.most / case.mark, "of the mark") if case.mark else Figure(0.0, "of the mark")


def _compared(figure: Figure) -> float:
    return figure.value if figure.beside is None else figure.ratio or 0.0


def _worst(figures: dict[Case, Figure], choose: Callable[..., Case], aim: float) -> Figure:
    case = choose(figures, key=lambda case: _compared(figures[case]))
    one = figures[case]
    of_ratio, more = one.beside is not None, choose is min
    return Figure(
        one.value, one.unit, one.beside, one.peer, aim, more, of_ratio, note=f"{case.text}, of {len(figures)} cases"
    )


def _median(figures: dict[Case, Figure]) -> Figure:
    case = sorted(figures, key=lambda case: _compared(figures[case]))[len(figures) // 2]
    one, spread = figures[case], rounds([_compared(each) for each in figures.values()])
    return Figure(
        one.value, one.unit, one.beside, one.peer, spread=spread, note=f"{case.text}, of {len(figures)} cases"
    )


def _refused(sides: list[Side]) -> Figure:
    asked = sum(side.asked for side in sides)
    percent = 100 * sum(side.refused for side in sides) / asked if asked else 0.0
    return Figure(percent, "% of them", aim=MOST_REFUSED, note=f"of {asked:,}")


def _equal(equal: Measured, value: Callable[[Side], float], what: str, unit: str) -> Figures:
    figures = {case: _beside(sides, value, unit) for case, sides in equal.items()}
    return {f"{EQUAL}: {what}": _median(figures)}


def main(size: Size = "full") -> Figures:
    return figures_of(asyncio.run(_run(SCALES[size])))


if __name__ == "__main__":
    command(main)
