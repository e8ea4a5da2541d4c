"""Draws the results of the overload benchmark as one SVG: bars of goodput and p99 for each system at each load."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping

from nats_backpressure.demo.summary import Summary

Results = Mapping[float, Mapping[str, Summary]]
"""Load in units of the capacity -> system -> summary of its run."""

COLOURS = ("#9e9e9e", "#c62828", "#ef6c00", "#1565c0", "#2e7d32")
LABEL, BAR, SPACE, PANEL, GAP = 90, 16, 14, 330, 70


def svg_chart(results: Results) -> str:
    """The text of an SVG file."""
    systems = list(next(iter(results.values())))
    group = len(systems) * BAR + SPACE
    width, height = LABEL + 2 * PANEL + GAP, 40 + len(results) * group
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui,sans-serif"'
    parts = [head, f' font-size="11" fill="#333"><rect width="{width}" height="{height}" fill="#fff"/>']
    panels: tuple[tuple[str, int, Callable[[Summary], float | None], str], ...] = (
        ("goodput, share of the capacity (more is better)", LABEL, lambda summary: summary.goodput, ".2f"),
        (
            "p99 from request to ack, seconds (less is better)",
            LABEL + PANEL + GAP,
            lambda summary: summary.p99_seconds,
            ".1f",
        ),
    )
    for title, left, value, shown in panels:
        most = (
            max((value(summary) or 0.0 for runs in results.values() for summary in runs.values()), default=0.0) or 1.0
        )
        parts.append(f'<text x="{left}" y="16" font-weight="bold">{title}</text>')
        for n, (load, runs) in enumerate(results.items()):
            top = 30 + n * group
            if left == LABEL:
                parts.append(f'<text x="4" y="{top + 11}" font-weight="bold">{load:g}x</text>')
            for i, name in enumerate(systems):
                number, y = value(runs[name]), top + i * BAR
                length = (PANEL - 80) * (number or 0.0) / most
                text = "-" if number is None else format(number, shown)
                if left == LABEL and runs[name].lost:
                    text += f", and {runs[name].lost:,} lost"
                parts.append(
                    f'<rect x="{left}" y="{y}" width="{length:.1f}" height="{BAR - 3}"'
                    f' fill="{COLOURS[i % len(COLOURS)]}"/><text x="{left + length + 4:.1f}" y="{y + 11}">{text}</text>'
                )
                if left == LABEL:
                    parts.append(f'<text x="{LABEL - 4}" y="{y + 11}" text-anchor="end">{html.escape(name)}</text>')
    return "".join([*parts, "</svg>\n"])
