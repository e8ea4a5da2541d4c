"""Writes one demo run as a self-contained HTML page with charts."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import NamedTuple

from nats_backpressure.demo.summary import Row, RunData, Summary

WIDTH, HEIGHT, LEFT, TOP = 900, 180, 60, 20
COLOURS = {"inactive": "#2e7d32", "warning": "#f9a825", "active": "#c62828", "unknown": "#9e9e9e"}
STYLE = (
    "body{font:14px system-ui,sans-serif;margin:2em auto;max-width:1000px;color:#222}"
    "h1{font-size:20px}h2{font-size:15px;margin:1.5em 0 0}table{border-collapse:collapse}"
    "td{padding:2px 16px 2px 0}svg text{font:11px system-ui,sans-serif;fill:#555}"
)


class ChartLine(NamedTuple):
    name: str
    colour: str
    value: Callable[[Row], float | None]


CHARTS: tuple[tuple[str, tuple[ChartLine, ...]], ...] = (
    (
        "Requests and messages a second",
        (
            ChartLine("offered", "#9e9e9e", lambda row: row.offered),
            ChartLine("admitted", "#1565c0", lambda row: row.admitted),
            ChartLine("rejected (503)", "#c62828", lambda row: row.shed),
            ChartLine("done", "#2e7d32", lambda row: row.processed),
        ),
    ),
    (
        "Messages waiting and in flight",
        (
            ChartLine("pending", "#6a1b9a", lambda row: row.backlog),
            ChartLine("in flight", "#ef6c00", lambda row: row.inflight),
        ),
    ),
    (
        "Latency p95, seconds",
        (ChartLine("p95", "#00838f", lambda row: None if row.p95_ms is None else row.p95_ms / 1000),),
    ),
    ("Admit ratio", (ChartLine("admit ratio", "#1565c0", lambda row: row.admit_ratio),)),
)


def html_page(data: RunData, summary: Summary) -> str:
    title = f"Overload {summary.overload:g}x, {summary.mode}"
    facts = "".join(
        f"<tr><td>{html.escape(name.replace('_', ' '))}</td><td>{html.escape(str(value))}</td></tr>"
        for name, value in ((name, getattr(summary, name)) for name in summary.__struct_fields__)
    )
    charts = "".join(f"<h2>{html.escape(name)}</h2>{_line_chart(data.rows, lines)}" for name, lines in CHARTS)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><table>{facts}</table><h2>Status</h2>{_status_strip(data.rows)}{charts}</html>\n"
    )


def _line_chart(rows: Sequence[Row], lines: Sequence[ChartLine]) -> str:
    top = max((line.value(row) or 0.0 for row in rows for line in lines), default=0.0) or 1.0
    drawn = [_chart_axes(rows, top)]
    for n, line in enumerate(lines):
        values = ((row.at, value) for row in rows if (value := line.value(row)) is not None)
        points = " ".join(f"{_x_position(at, rows):.1f},{_y_position(value, top):.1f}" for at, value in values)
        drawn.append(f'<polyline fill="none" stroke="{line.colour}" stroke-width="1.5" points="{points}"/>')
        drawn.append(f'<rect x="{LEFT + 130 * n}" y="2" width="10" height="10" fill="{line.colour}"/>')
        drawn.append(f'<text x="{LEFT + 14 + 130 * n}" y="11">{html.escape(line.name)}</text>')
    return _svg(HEIGHT + TOP + 20, drawn)


def _status_strip(rows: Sequence[Row]) -> str:
    """The status over time, as a coloured strip."""
    drawn = []
    for row, after in zip(rows, [*rows[1:], *rows[-1:]], strict=True):
        x, width = _x_position(row.at, rows), _x_position(after.at, rows) - _x_position(row.at, rows) + 0.5
        drawn.append(f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="14" fill="{COLOURS[row.status]}"/>')
    for n, (word, colour) in enumerate(COLOURS.items()):
        drawn.append(f'<rect x="{LEFT + 130 * n}" y="20" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text x="{LEFT + 14 + 130 * n}" y="29">{word}</text>')
    return _svg(34, drawn)


def _chart_axes(rows: Sequence[Row], top: float) -> str:
    parts = []
    for share in (0, 0.5, 1):
        y = _y_position(top * share, top)
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * share:.4g}</text>')
    seconds = rows[-1].at if rows else 0.0
    for share in (0, 0.25, 0.5, 0.75, 1):
        position = f'x="{LEFT + WIDTH * share:.0f}" y="{HEIGHT + TOP + 16}" text-anchor="middle"'
        parts.append(f"<text {position}>{seconds * share:.0f} s</text>")
    return "".join(parts)


def _x_position(at: float, rows: Sequence[Row]) -> float:
    return LEFT + WIDTH * at / max(rows[-1].at, 0.001)


def _y_position(value: float, top: float) -> float:
    return TOP + HEIGHT * (1 - value / top)


def _svg(height: int, drawn: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {LEFT + WIDTH + 20} {height}" width="100%">{"".join(drawn)}</svg>'
