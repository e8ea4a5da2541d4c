"""What the commands print: tables for a terminal, aligned text for anything else, and values as people read them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Sequence[str]
FIELDS = ("field", "value", "from")
"""The headers of a policy in full."""


def grid(headers: Row, rows: Sequence[Row], title: str = "", quiet: str = "") -> None:
    """A table; rows whose last cell is `quiet` stand back on a terminal."""
    if sys.stdout.isatty():
        Console().print(table(headers, rows, title, quiet))
        return
    if title:
        click.echo(plain(title))
    lines = [[plain(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def table(headers: Row, rows: Sequence[Row], title: str = "", quiet: str = "") -> Table:
    drawn = Table(*headers, title=Text(plain(title)) if title else None, title_justify="left", title_style="bold")
    for row in rows:
        # As Text: what comes from outside may look like rich's own markup.
        drawn.add_row(*(Text(plain(cell)) for cell in row), style="dim" if quiet and row[-1] == quiet else "")
    return drawn


def plain(said: str) -> str:
    """Something from outside, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in said)


def print_json(value: object) -> None:
    """One JSON document; bytes are one already."""
    click.echo(value if isinstance(value, bytes) else msgspec.json.encode(value))


def note(said: str) -> None:
    """For whoever reads along, not for whoever reads the result."""
    click.echo(plain(said), err=True)


def fields(values: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Of a policy in full: field, value, and where it comes from: one word, or each member's where they differ."""
    for name, value in values.items():
        leaves = {leaf: item for leaf, item in value.items() if item is not None} if isinstance(value, dict) else {}
        found = {leaf: sources.get(f"{name}.{leaf}") or sources.get(name, "") for leaf in leaves or [""]}
        shown = "  ".join(f"{leaf} {text(item)}" for leaf, item in leaves.items()) if leaves else text(value)
        distinct = set(found.values())
        yield name, shown, distinct.pop() if len(distinct) == 1 else ", ".join(f"{k}: {v}" for k, v in found.items())


def text(value: object) -> str:
    match value:
        case None | []:
            return "none"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.12g}"
        case list():
            return "; ".join(map(_alert, value))
    return str(value)


def _alert(alert: Any) -> str:
    """One alert in a line: `long-queue (critical): pending_above 5000 for 60 s`."""
    (condition,) = alert["when"].items()
    lasting = f" for {text(alert['for_seconds'])} s" if alert["for_seconds"] else ""
    return f"{alert['name']} ({alert['severity']}): {condition[0]} {text(condition[1])}{lasting}"


def cell(value: float | str | None) -> str:
    """A number to three digits behind the point, words as they are, `-` for what is not known."""
    if isinstance(value, str):
        return value
    return "-" if value is None else f"{round(value, 3):,g}" if abs(value) < 1e6 else f"{value:,.0f}"


def because(reasons: Sequence[str], diagnosis: str | None) -> str:
    return ", ".join([*reasons, *([f"({diagnosis})"] if diagnosis else [])])
