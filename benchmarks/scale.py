"""Computes delay and cost for 1,000 to 10 million consumers with the poller of the service on a simulated server.

What requests cost a real server is measured first, what samples cost the service is taken from results.json. At 1,000
and 10,000 consumers the computed values stand beside those that the other benchmarks measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from benchmarks import detection, scale_costs
from benchmarks.figures import Figure, Figures, Size, command, percentiles, progress
from benchmarks.scale_simulation import OBSERVE, Costs, Deployment, Outcome, simulate

DEFAULT_RATE = OBSERVE.api_requests_per_second
ACTIVITIES: dict[str, tuple[float, float]] = {
    "idle": (0.0, 0.0),
    "a tenth of the streams busy": (0.1, 0.0),
    "a tenth busy, 1 in 1,000 overloaded": (0.1, 0.001),
}
"""Share of busy streams, and of consumers that are overloaded all the time."""
TARGETS = (0.25, 1.0, 5.0)
"""Seconds: how many replicas are needed for this p99."""
REPLICAS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
MOST = 100_000
"""Consumers of one replica at most: more are not simulated."""
RARE = (3.0, 9.0)
"""Seconds from a recovery to the next crossing, so that crossings themselves are little of the load."""


class Scale(Struct, frozen=True):
    alone: tuple[tuple[int, int, int], ...]
    """Consumers, streams and replicas, with the default budget for all replicas together."""
    shared: tuple[tuple[int, int], ...]
    """Consumers and streams, with the default budget for each replica."""
    crossings: int
    seconds: float
    """Virtual seconds of crossings at most."""
    measured: tuple[tuple[int, int], ...]
    """Consumers and streams as in the benchmarks `detection` and `standing`, whose values stand beside."""


SCALES: dict[Size, Scale] = {
    "full": Scale(
        ((1000, 4, 1), (10_000, 20, 1), (100_000, 100, 1), (1_000_000, 1000, 10)),
        ((100_000, 100), (1_000_000, 1000), (10_000_000, 10_000)),
        40,
        150.0,
        ((1000, 4), (10_000, 20)),
    ),
    "quick": Scale(((1000, 4, 1), (10_000, 20, 1)), ((10_000, 20),), 10, 30.0, ((1000, 4),)),
    "tiny": Scale(((100, 2, 1),), (), 2, 20.0, ()),
}


def case_name(consumers: int, streams: int, what: str) -> str:
    return f"computed: {consumers:,} consumers in {streams:,} streams, {what}"


def case(outcome: Outcome, note: str = "") -> Figure:
    """One simulated deployment: p99, and in `spread` all that came of it, in s, 1/s, shares of a core and MiB."""
    spread = percentiles(outcome.delays) | {
        "requests": outcome.requests,
        "server": outcome.server,
        "client": outcome.client,
        "memory": outcome.memory / 2**20,
        "stretch": outcome.stretch,
        "crossings": float(len(outcome.delays)),
    }
    return Figure(spread["p99"], "s", spread=spread, note=note)


def _alone(scale: Scale, costs: Costs) -> Figures:
    figures: Figures = {}
    for consumers, streams, replicas in scale.alone:
        for what, (busy, hot) in ACTIVITIES.items():
            progress(f"{consumers:,} consumers, {what}")
            of = Deployment(consumers, streams, busy, hot, replicas)
            outcome = simulate(of, costs, scale.crossings, walks=2, pause=RARE, most_seconds=scale.seconds)
            figures[case_name(consumers, streams, what)] = case(outcome, f"{replicas} replicas" if replicas > 1 else "")
    return figures


def _shared(scale: Scale, costs: Costs) -> Figures:
    """The default budget for each replica: from which number of them on is the p99 below each target?"""
    figures: Figures = {}
    for consumers, streams in scale.shared:
        wanted = list(TARGETS)
        for replicas in REPLICAS:
            if not wanted or replicas > streams:
                break
            if consumers / replicas > MOST:
                continue
            progress(f"{consumers:,} consumers, {replicas} replicas")
            rate, share = DEFAULT_RATE * replicas, _share(streams)
            of = Deployment(consumers, streams, 0.1, 0.0, replicas, rate, share)
            outcome = simulate(of, costs, scale.crossings, walks=2, pause=RARE, most_seconds=scale.seconds)
            figures[case_name(consumers, streams, f"{replicas} replicas")] = case(outcome, f"server_share {share:g}")
            wanted = [target for target in wanted if percentiles(outcome.delays)["p99"] > target]
    return figures


def _share(streams: int) -> float:
    """The `server_share` at which the list of streams can be looked at often enough: the default up to 1,000."""
    return OBSERVE.server_share if streams <= 1000 else min(1.0, OBSERVE.server_share * streams / 1000)


MEASURED = (
    ("API requests", "1/s", "requests", 1.0),
    ("sidecar", "% of a core", "client", 100.0),
    ("server, more than without us", "% of a core", "server", 100.0),
    ("memory (rss)", "MiB", "memory", 2.0**-20),
)
"""Figure of `standing` -> its unit, the field of an Outcome, and the factor between them."""


def _beside(costs: Costs, figures: Mapping[str, Figure], scale: Scale) -> Figures:
    """Computed values beside those that were measured."""
    beside: Figures = {}
    for consumers, streams in scale.measured:
        progress(f"{consumers:,} consumers, as they were measured")
        of = Deployment(consumers, streams)
        seen = simulate(of, costs, 200, walks=detection.WALKS, pause=detection.IDLE)
        for part, value in percentiles([1000 * each for each in seen.delays]).items():
            name = f"an overload is seen after, {part}"
            real = figures.get(name) if consumers == detection.SCALES["full"].consumers else None
            beside[f"computed: {consumers:,} consumers, {name}"] = _with(Figure(value, "ms"), real)
        still = simulate(of, costs, 0, walks=1, most_seconds=30.0)
        for label, unit, field, factor in MEASURED:
            name = f"{consumers:,} idle consumers in {streams} streams: {label}"
            beside[f"computed: {name}"] = _with(Figure(factor * getattr(still, field), unit), figures.get(name))
    return beside


def _with(computed: Figure, measured: Figure | None) -> Figure:
    return computed if measured is None else replace(computed, beside=measured.value, peer="measured")


def main(size: Size = "full") -> Figures:
    scale = SCALES[size]
    costs, figures = asyncio.run(scale_costs.measure(size))
    costs = scale_costs.with_results(costs, scale_costs.measured_figures())
    figures |= _beside(costs, scale_costs.measured_figures(), scale)
    return figures | _alone(scale, costs) | _shared(scale, costs)


if __name__ == "__main__":
    command(main)
