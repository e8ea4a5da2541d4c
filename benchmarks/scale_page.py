"""Makes the tables and the plot of docs/scale.md from the results of scale.py."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from benchmarks import performance_plots
from benchmarks.figures import Figure, number
from benchmarks.results import Results
from benchmarks.scale import ACTIVITIES, REPLICAS, SCALES, TARGETS, case_name

FULL = SCALES["full"]
ENOUGH, CORE_SHARE = 1.0, 0.5
"""Seconds of p99 and share of a core up to which one replica counts as enough."""
COLOURS = ("#2e7d32", "#1565c0", "#c62828")


def part(name: str, figures: Mapping[str, Figure]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one table: `measured`, `alone`, `replicas` or `costs`."""
    return {"measured": _measured, "alone": _alone, "replicas": _replicas, "costs": _costs}[name](figures)


def beside_newest(figures: Mapping[str, Figure], measured: Mapping[str, Figure]) -> dict[str, Figure]:
    """Each computed figure beside what was measured last: the others may have run again since."""
    names = {name: name.removeprefix("computed: ") for name, each in figures.items() if each.peer == "measured"}
    newest = {name: measured.get(of) or measured.get(of.partition(" consumers, ")[2]) for name, of in names.items()}
    return {
        name: replace(each, beside=new.value) if (new := newest.get(name)) else each for name, each in figures.items()
    }


def _measured(figures: Mapping[str, Figure]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name.removeprefix("computed: "), f"{number(each.beside)} {each.unit}", f"{number(each.value)} {each.unit}"]
        for name, each in figures.items()
        if name.startswith("computed: ") and each.peer == "measured"
    ]
    return ["figure", "measured", "computed"], rows


def _costs(figures: Mapping[str, Figure]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [name, f"{number(each.value)} {each.unit}"]
        for name, each in figures.items()
        if name.startswith(("server: ", "client: "))
    ]
    return ["measured on a real server", "value"], rows


def _values(figure: Figure) -> list[str]:
    spread = figure.spread
    return [
        _seconds(spread["p50"]),
        _seconds(spread["p99"]),
        number(spread["requests"]),
        f"{number(100 * spread['server'])} %",
    ]


def _seconds(value: float) -> str:
    return f"{number(value)} s" if value >= 1 else f"{number(1000 * value)} ms"


def _alone(figures: Mapping[str, Figure]) -> tuple[list[str], list[list[str]]]:
    header = ["consumers", "streams", "what happens", "p50", "p99", "requests/s", "server", "client", "memory"]
    rows = []
    for consumers, streams, replicas in FULL.alone:
        for what in ACTIVITIES:
            if (figure := figures.get(case_name(consumers, streams, what))) is not None:
                shown = f"{consumers:,}" + (f" ({replicas} replicas)" if replicas > 1 else "")
                client, memory = figure.spread["client"], figure.spread["memory"]
                more = [f"{number(100 * client)} %", f"{number(memory)} MiB"]
                rows.append([shown, f"{streams:,}", what, *_values(figure), *more])
    return header, rows


def _chosen(figures: Mapping[str, Figure]) -> Iterator[tuple[int, int, int, Figure]]:
    """Consumers, streams, the fewest replicas that reach a target, and what they reach."""
    for consumers, streams in FULL.shared:
        computed = {n: figures.get(case_name(consumers, streams, f"{n} replicas")) for n in REPLICAS}
        known = {n: each for n, each in computed.items() if each is not None}
        reached = [next((n for n in known if known[n].spread["p99"] <= target), None) for target in TARGETS]
        for n in sorted({each for each in reached if each is not None} or set(list(known)[-1:])):
            yield consumers, streams, n, known[n]


def _replicas(figures: Mapping[str, Figure]) -> tuple[list[str], list[list[str]]]:
    header = ["consumers", "streams", "replicas", "`server_share`", "p50", "p99", "requests/s", "server"]
    rows = [
        [
            f"{consumers:,}",
            f"{streams:,}",
            f"{n:,}",
            each.note.removeprefix("server_share "),
            *_values(each),
            f"{number(100 * each.spread['client'] / n)} %",
            f"{number(each.spread['memory'] / n)} MiB",
        ]
        for consumers, streams, n, each in _chosen(figures)
    ]
    return [*header, "client, each", "memory, each"], rows


def enough(figures: Mapping[str, Figure]) -> str:
    """Up to where one replica with default settings is enough, as a sentence."""
    names = list(ACTIVITIES)
    parts = []
    for what in names:
        fit = [
            consumers
            for consumers, streams, replicas in FULL.alone
            if (each := figures.get(case_name(consumers, streams, what))) is not None
            if replicas == 1 and each.spread["p99"] <= ENOUGH and each.spread["client"] <= CORE_SHARE
        ]
        parts.append(f"{what}: {max(fit):,}" if fit else f"{what}: fewer than {FULL.alone[0][0]:,}")
    return (
        f"Consumers for which one replica with default settings is enough (p99 within {ENOUGH:g} s, at most "
        f"{CORE_SHARE:.0%} of a core; of the sizes in the table): {'; '.join(parts)}."
    )


def plot(results: Results, before: Results | None) -> str:
    """p50 and p99 by consumers, both logarithmic, a colour for each activity."""
    figures = results.runs["scale"].figures if "scale" in results.runs else {}
    lines = {what: list(_points(figures, what)) for what in ACTIVITIES}
    seconds = [value for points in lines.values() for _, p50, p99 in points for value in (p50, p99)] or [0.1, 10.0]
    sizes = [consumers for consumers, _, _ in FULL.alone]
    left, right, top, bottom = 60, performance_plots.WIDTH - 60, 50, 330
    across = performance_plots.Scale(min(sizes), max(sizes), left, right)
    up = performance_plots.Scale(min(seconds), max(seconds), bottom, top)
    parts = [
        '<text x="4" y="16" font-weight="bold">an overload is seen after, p99 (thick) and p50, by consumers</text>'
    ]
    parts += performance_plots.axis(across, top, bottom, "")
    for tick in up.ticks:
        y = up.x(tick)
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#e0e0e0"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g} s</text>')
    for n, (what, points) in enumerate(lines.items()):
        parts.append(f'<text x="{left + 8 + 240 * n}" y="36" fill="{COLOURS[n]}">{html.escape(what)}</text>')
        for width, column in ((1, 1), (3, 2)):
            path = " ".join(f"{across.x(point[0]):.1f},{up.x(point[column]):.1f}" for point in points)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[n]}" stroke-width="{width}"/>')
    return performance_plots.svg(bottom + 22, parts)


def _points(figures: Mapping[str, Figure], what: str) -> Iterator[tuple[float, float, float]]:
    for consumers, streams, _ in FULL.alone:
        if (each := figures.get(case_name(consumers, streams, what))) is not None:
            yield consumers, each.spread["p50"], each.spread["p99"]
