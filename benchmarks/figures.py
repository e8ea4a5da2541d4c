"""What a benchmark returns, and how it is run alone: `main(size)` returns figures by name.

    def main(size: Size = "full") -> dict[str, Figure]: ...

    if __name__ == "__main__":
        command(main)

`python -m benchmarks.NAME` then prints the figures, `--size quick` takes some seconds, `--json FILE` writes them too.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec
from msgspec import Struct

Size = Literal["full", "quick", "tiny"]
"""`full` is what counts, `quick` shows in some 20 s whether it works, `tiny` is for the tests: its values are noise."""


class Figure(Struct, frozen=True, omit_defaults=True):
    """One measured value, beside that of its peer where there is one."""

    value: float
    unit: str
    beside: float | None = None
    """The same quantity of the peer, measured in the same run."""
    peer: str = ""
    """What the peer is."""
    aim: float | None = None
    """What the value should be at most (at least if `more_is_better`); with `aim_of_ratio` it is of `ratio`."""
    more_is_better: bool = False
    aim_of_ratio: bool = False
    spread: dict[str, float] = {}
    """`min`, `median` and `max` of the rounds, or percentiles (`p50`, `p99`, `worst`)."""
    note: str = ""
    """What a reader must know to read the value."""

    @property
    def ratio(self) -> float | None:
        return self.value / self.beside if self.beside else None

    @property
    def compared(self) -> float | None:
        """What is compared with the aim."""
        return self.ratio if self.aim_of_ratio else self.value

    @property
    def reached(self) -> bool | None:
        """Whether the aim is reached; None where there is none."""
        if self.aim is None or self.compared is None:
            return None
        return self.compared >= self.aim if self.more_is_better else self.compared <= self.aim


Figures = dict[str, Figure]
Main = Callable[[Size], Mapping[str, Figure]]


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50": percentile(values, 0.5),
        "p90": percentile(values, 0.9),
        "p99": percentile(values, 0.99),
        "worst": max(values, default=float("nan")),
    }


def rounds(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": percentile(values, 0.5), "max": max(values)}


def progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def number(value: float | None) -> str:
    """A value with three digits that count."""
    if value is None or value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def aim_text(figure: Figure) -> str:
    if figure.aim is None:
        return ""
    bound = "at least" if figure.more_is_better else "at most"
    return f"{bound} {number(figure.aim)} {'of it' if figure.aim_of_ratio else figure.unit}".rstrip()


def print_figures(figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        beside = f"beside {number(figure.beside)} ({number(figure.ratio)} of it)" if figure.beside is not None else ""
        aim = f"aim: {aim_text(figure)}, {'reached' if figure.reached else 'MISSED'}" if figure.aim is not None else ""
        spread = " ".join(f"{part} {number(value)}" for part, value in figure.spread.items())
        parts = (f"{number(figure.value):>9} {figure.unit}", beside, aim, spread)
        print(f"{name:58} {'; '.join(part for part in parts if part)}", flush=True)


def command(main: Main) -> None:
    """Run one benchmark from the command line."""
    parser = argparse.ArgumentParser(description=(sys.modules["__main__"].__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=get_args(Size), default="full")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    wanted = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up in the same way
    try:
        figures = main(wanted.size)
    except KeyboardInterrupt:
        sys.exit(130)
    print_figures(figures)
    if wanted.json:
        wanted.json.write_bytes(msgspec.json.encode(figures))
