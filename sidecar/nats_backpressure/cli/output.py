"""Prints tables (drawn on a terminal, aligned text elsewhere), notes and JSON, and formats the values in them."""

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
POLICY_HEADERS = ("field", "value", "from")


def print_table(headers: Row, rows: Sequence[Row], title: str = "", dim_if: str = "") -> None:
    """On a terminal, rows whose last cell is `dim_if` are dimmed."""
    if sys.stdout.isatty():
        Console().print(rich_table(headers, rows, title, dim_if))
        return
    if title:
        click.echo(printable(title))
    lines = [[printable(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def rich_table(headers: Row, rows: Sequence[Row], title: str = "", dim_if: str = "") -> Table:
    table = Table(title=Text(printable(title)) if title else None, title_justify="left", title_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        # As Text: a value from outside may look like rich's own markup.
        table.add_row(*(Text(printable(cell)) for cell in row), style="dim" if dim_if and row[-1] == dim_if else "")
    return table


def printable(text: str) -> str:
    """A text from outside, without the control characters that a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in text)


def print_json(value: object) -> None:
    """One JSON document; bytes are already one."""
    click.echo(value if isinstance(value, bytes) else msgspec.json.encode(value))


def print_note(text: str) -> None:
    """On standard error: for people, not for programs that read the result."""
    click.echo(printable(text), err=True)


def policy_rows(values: Mapping[str, Any], sources: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Each field of a policy: its name, its value, and which layer it comes from (one name, or one for each member
    where they differ)."""
    for name, value in values.items():
        members = {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else {}
        text = "  ".join(f"{key} {format_value(item)}" for key, item in members.items()) or format_value(value)
        source_of = {key: sources.get(f"{name}.{key}") or sources.get(name, "") for key in members or [""]}
        distinct = set(source_of.values())
        source = distinct.pop() if len(distinct) == 1 else ", ".join(f"{k}: {v}" for k, v in source_of.items())
        yield name, text, source


def format_value(value: object) -> str:
    match value:
        case None | []:
            return "none"
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:.12g}"
        case list():
            return _as_in_a_file(value)
    return str(value)


def _as_in_a_file(alerts: list[Any]) -> str:
    """Alerts in a line that can be copied into a settings file."""
    import yaml  # rarely needed, and slow to load

    without_zero = [{name: item for name, item in alert.items() if item != 0} for alert in alerts]
    flow = yaml.safe_dump(_whole_numbers(without_zero), default_flow_style=True, sort_keys=False, width=float("inf"))
    return str(flow).strip()


def _whole_numbers(value: Any) -> Any:
    """The same, without the `.0` of whole numbers."""
    match value:
        case dict():
            return {name: _whole_numbers(item) for name, item in value.items()}
        case list():
            return [_whole_numbers(item) for item in value]
        case float() if value.is_integer():
            return int(value)
    return value


def format_cell(value: float | str | None) -> str:
    """A number with three decimals at most, text unchanged, `-` for what is not known."""
    if isinstance(value, str):
        return value
    return "-" if value is None else f"{round(value, 3):,g}" if abs(value) < 1e6 else f"{value:,.0f}"


def format_reasons(reasons: Sequence[str], diagnosis: str | None) -> str:
    """The diagnosis stands last, in parentheses, unless it is one of the reasons."""
    return ", ".join([*reasons, *([f"({diagnosis})"] if diagnosis and diagnosis not in reasons else [])])
