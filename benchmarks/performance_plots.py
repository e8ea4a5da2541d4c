"""Draws the results of `make bench` as SVG: each figure in multiples of its aim, and how long overloads go unseen."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from benchmarks.figures import Figure, number
from benchmarks.results import Results

NOW, BEFORE, PEER = "#1565c0", "#9e9e9e", "#c62828"
WIDTH, LABEL, ROW, RIGHT = 900, 400, 18, 60
DETECTION = "an overload is seen after, all"


def _all(results: Results | None) -> dict[str, Figure]:
    runs = results.runs.values() if results is not None else ()
    return {name: figure for run in runs for name, figure in run.figures.items()}


def times_the_aim(figure: Figure) -> float | None:
    """1 is the aim, 2 twice as bad, 0.5 twice as good; None without an aim or a value."""
    value = figure.compared
    if figure.aim is None or figure.aim <= 0 or value is None or not math.isfinite(value):
        return None
    low = 0.01 * figure.aim  # a value of nothing still has a place on the scale
    return figure.aim / max(value, low) if figure.more_is_better else max(value, low) / figure.aim


class Scale:
    """A logarithmic axis from left to right."""

    def __init__(self, low: float, high: float, left: float, right: float) -> None:
        self.low, self.high = math.floor(math.log10(low)), math.ceil(math.log10(high))
        self.high += self.high == self.low
        self._left, self._width = left, right - left

    def x(self, value: float) -> float:
        return self._left + self._width * (math.log10(value) - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        return [10.0**n for n in range(self.low, self.high + 1)]


def svg(height: int, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui,sans-serif"'
    return "\n".join(
        [f'{head} font-size="11" fill="#333"><rect width="{WIDTH}" height="{height}" fill="#fff"/>', *parts, "</svg>\n"]
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{more}>{html.escape(text)}</text>'


def axis(scale: Scale, top: float, bottom: float, unit: str) -> list[str]:
    parts = []
    for tick in scale.ticks:
        x = scale.x(tick)
        parts.append(f'<line x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}" stroke="#e0e0e0"/>')
        parts.append(_text(x, bottom + 14, f"{tick:,g}{unit}", ' text-anchor="middle"'))
    return parts


def _legend(y: float, entries: Mapping[str, str]) -> list[str]:
    parts, x = [], float(LABEL)
    for text, colour in entries.items():
        parts.append(f'<circle cx="{x:.1f}" cy="{y - 4:.1f}" r="5" fill="{colour}"/>')
        parts.append(_text(x + 9, y, text))
        x += 30 + 6.5 * len(text)
    return parts


def aims(results: Results, before: Results | None) -> str:
    """Each figure in multiples of its aim, on a logarithmic scale; left of 1 the aim is reached."""
    now = {name: times for name, each in _all(results).items() if (times := times_the_aim(each)) is not None}
    earlier = {name: times for name, each in _all(before).items() if (times := times_the_aim(each)) is not None}
    values = [*now.values(), *(earlier[name] for name in now if name in earlier), 1.0]
    scale = Scale(min(values), max(values), LABEL, WIDTH - RIGHT)
    top, bottom = 34, 40 + ROW * len(now)
    parts = [_text(4, 16, "in multiples of the aim (less is better)", ' font-weight="bold"')]
    parts += _legend(16, {"now": NOW, "before": BEFORE})
    parts += axis(scale, top, bottom, "x")
    aim = scale.x(1.0)
    parts.append(f'<line x1="{aim:.1f}" y1="{top}" x2="{aim:.1f}" y2="{bottom}" stroke="#2e7d32" stroke-width="2"/>')
    for n, (name, times) in enumerate(now.items()):
        y = top + ROW * n + 13
        parts.append(_text(LABEL - 8, y + 4, name, ' text-anchor="end"'))
        x = scale.x(times)
        if name in earlier:
            was = scale.x(earlier[name])
            parts.append(f'<line x1="{was:.1f}" y1="{y}" x2="{x:.1f}" y2="{y}" stroke="#bbb"/>')
            parts.append(f'<circle cx="{was:.1f}" cy="{y}" r="4" fill="{BEFORE}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="5" fill="{NOW}"/>')
        parts.append(_text(x + 8, y + 4, f"{number(times)}x"))
    return svg(bottom + 22, parts)


def _shares(figure: Figure | None) -> list[tuple[float, float]]:
    """Milliseconds and the share of the crossings seen by then."""
    if figure is None:
        return []
    named = {name: value for name, value in figure.spread.items() if value is not None and math.isfinite(value)}
    points = [(value, float(name[1:]) / 100) for name, value in named.items() if name[:1] == "p"]
    points += [(named["worst"], 1.0)] if "worst" in named else []
    return sorted(points, key=lambda point: point[1])


def detection(results: Results, before: Results | None) -> str:
    """The share of overloads seen within a time."""
    lines = {
        "now": (NOW, _shares(_all(results).get(DETECTION))),
        "before": (BEFORE, _shares(_all(before).get(DETECTION))),
        "js.consumer_info of each in turn, same budget": (PEER, _shares(_all(results).get(f"{DETECTION} of the peer"))),
    }
    values = [value for _, points in lines.values() for value, _ in points] or [1.0, 10.0]
    scale = Scale(min(values), max(values), 60, WIDTH - RIGHT)
    top, bottom = 34, 260
    parts = [_text(4, 16, "share of overloads seen within", ' font-weight="bold"')]
    parts += _legend(16, {name: colour for name, (colour, points) in lines.items() if points})
    parts += axis(scale, top, bottom, " ms")
    for share in (0.0, 0.5, 0.9, 1.0):
        y = bottom - (bottom - top) * share
        parts.append(f'<line x1="60" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e0e0e0"/>')
        parts.append(_text(52, y + 4, f"{share:.0%}", ' text-anchor="end"'))
    for colour, points in lines.values():
        path = " ".join(f"{scale.x(value):.1f},{bottom - (bottom - top) * share:.1f}" for value, share in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return svg(bottom + 22, parts)
