"""Makes tables of the results: the one that `make bench` prints, and those of docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks import gate_page, performance_plots, scale_page
from benchmarks.figures import Figure, aim_text, number
from benchmarks.results import BEFORE, RESULTS, Results, load

PLOTS = {
    "performance-aims.svg": performance_plots.aims,
    "performance-detection.svg": performance_plots.detection,
    "scale.svg": scale_page.plot,
}
"""File in docs/ -> what draws it from the results and those before."""


def figures(results: Results | None) -> dict[str, Figure]:
    """All figures of all benchmarks by name."""
    if results is None:
        return {}
    return {name: figure for run in results.runs.values() for name, figure in run.figures.items()}


def aim_rows(results: Results, before: Results | None) -> list[list[str]]:
    """A row for each figure that has an aim: name, before, now, beside, ratio, aim, whether it is reached."""
    earlier = figures(before)
    return [
        [
            name,
            _value(earlier.get(name)),
            _value(figure),
            "" if figure.beside is None else f"{number(figure.beside)} ({figure.peer})",
            "" if figure.beside is None else number(figure.ratio),
            aim_text(figure),
            "yes" if figure.reached else "no",
        ]
        for name, figure in figures(results).items()
        if figure.aim is not None
    ]


ELSEWHERE = ("gate", "scale")
"""Benchmarks whose figures have a part or a page of their own."""
HEADER = ["figure", "before", "now", "beside", "ratio", "aim", "reached"]
BESIDE = HEADER.index("beside")


def _value(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    ratio = f" ({number(figure.ratio)} of it)" if figure.aim_of_ratio and figure.beside is not None else ""
    return f"{number(figure.value)} {figure.unit}{ratio}"


def table_text(results: Results, before: Results | None) -> str:
    """The table for a terminal."""
    rows = [HEADER, *aim_rows(results, before)]
    for row in rows[1:]:
        row[BESIDE] = row[BESIDE].partition(" (")[0]  # the names of the peers are on the page: lines stay short
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEADER))]
    return "\n".join("  ".join(cell.ljust(widths[n]) for n, cell in enumerate(row)).rstrip() for row in rows)


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    columns = list(header)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def performance(part: str) -> str:
    """A generated part of docs/performance.md (`aims`, `gate`, `machine` or `all`) or docs/operations.md (`size`)."""
    results, before = load(RESULTS), load(BEFORE)
    if results is None:
        return "Nothing was measured yet: run `make bench`."
    return {"aims": _aims, "gate": _gate, "machine": _machine, "all": _all, "size": _size}[part](results, before)


def scale(part: str) -> str:
    """A generated part of docs/scale.md: `enough`, or a table of scale_page."""
    results = load(RESULTS)
    if results is None or (run := results.runs.get("scale")) is None:
        return "Not computed yet: run `python -m benchmarks scale`."
    measured = {name: figure for each in results.runs.values() for name, figure in each.figures.items()}
    figures = scale_page.beside_newest(run.figures, measured)
    return scale_page.enough(figures) if part == "enough" else markdown(*scale_page.part(part, figures))


def _aims(results: Results, before: Results | None) -> str:
    return markdown(HEADER, aim_rows(results, before))


def _gate(results: Results, before: Results | None) -> str:
    if (run := results.runs.get("gate")) is None:
        return "Not measured yet: run `make bench-gate`."
    tables = [markdown(*part(run.figures)) for part in (gate_page.summary, gate_page.cases)]
    return "\n\n".join([_title("gate", results), *tables])


def _machine(results: Results, before: Results | None) -> str:
    lines = []
    for when, each in (("Now", results), ("Before", before)):
        if each is None or not each.runs:
            continue
        on, runs = each.machine, list(each.runs.values())
        loads, processors = [run.load[0] for run in runs], dict.fromkeys(run.processor or on.processor for run in runs)
        packages = ", ".join(f"{name} {version}" for name, version in on.packages.items())
        lines.append(
            f"- {when}: {min(run.started for run in runs)} to {max(run.started for run in runs)}, "
            f"{on.cores} cores ({', '.join(processors)}), {on.system}, "
            f"Python {on.python}, nats-server {on.nats_server}, "
            f"{packages}{'' if 'uvloop' in on.packages else ', no uvloop'}. "
            f"Commit {', '.join(dict.fromkeys(run.commit or on.commit or 'unknown' for run in runs))}. "
            f"Load average when a benchmark started: {min(loads):.1f} to {max(loads):.1f}."
        )
    return "\n".join(lines)


def _all(results: Results, before: Results | None) -> str:
    earlier = figures(before)
    parts = []
    for name, run in results.runs.items():
        if name in ELSEWHERE:
            continue
        rows = [
            [
                label,
                _value(earlier.get(label)),
                _value(figure) + (f", {figure.note}" if figure.note else ""),
                "" if figure.beside is None else f"{number(figure.beside)} ({figure.peer})",
                ", ".join(f"{part} {number(value)}" for part, value in figure.spread.items()),
            ]
            for label, figure in run.figures.items()
        ]
        parts.append(f"{_title(name, results)}\n\n{markdown(['figure', 'before', 'now', 'beside', 'spread'], rows)}")
    return "\n\n".join(parts)


def _title(name: str, results: Results) -> str:
    run = results.runs[name]
    commit = f", commit {run.commit}" if run.commit else ""
    return f"`python -m benchmarks.{name}`: {run.started}, {run.seconds:.0f} s, load average {run.load[0]:.1f}{commit}."


SIZES = ("3 idle consumers in 1 stream", "1,000 idle consumers in 4 streams", "10,000 idle consumers in 20 streams")
SIZED = ("sidecar", "memory (rss)", "API requests", "server, more than without us")


def _size(results: Results, before: Results | None) -> str:
    """What one replica takes, by the number of consumers."""
    measured = figures(results)
    rows = [[size, *(_value(measured.get(f"{size}: {what}")) for what in SIZED)] for size in SIZES]
    return markdown(["consumers", "CPU", "memory", "JetStream API requests", "CPU of the server"], rows)


def plots() -> dict[str, str]:
    """The plots of docs/performance.md by file name; none while nothing was measured."""
    results, before = load(RESULTS), load(BEFORE)
    return {file: draw(results, before) for file, draw in PLOTS.items()} if results is not None else {}
