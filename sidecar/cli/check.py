"""`check`: whether a file can be used, and what would be in force with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sidecar.core.policy import PolicyEntry, over_default, plain
from sidecar.core.rules import Effective
from sidecar.settings import BadSettings, Settings, load

EX_CONFIG = 78
"""The exit code of sysexits.h for a configuration that cannot be used."""

Row = tuple[str, str, str]


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Validate FILE under the present environment and print the policies that would be in force.

    Exits with 0, or with 78 and one line for each mistake.
    """
    try:
        settings = load(file, os.environ)
    except BadSettings as bad:
        for line in bad.lines:
            click.echo(line, err=True)
        sys.exit(EX_CONFIG)
    if sys.stdout.isatty():
        _draw(settings)
    else:
        _write(settings)


def _sections(settings: Settings) -> Iterator[tuple[str, Effective]]:
    """Each configured pattern and what is in force for it, then the rest."""
    for entry in settings.policies:
        for subject in entry.subjects:
            yield subject + _whose(entry), over_default(entry)
    yield "everything else" if settings.policies else "everything", over_default(PolicyEntry())


def _whose(entry: PolicyEntry) -> str:
    return "" if entry.consumers == ("*",) else f"  (consumers {', '.join(entry.consumers)})"


def _rows(found: Effective) -> Iterator[Row]:
    """Field, value, and where it comes from: one word, or each member's where they differ."""
    for name, value in plain(found.policy).items():
        leaves = {leaf: item for leaf, item in value.items() if item is not None} if isinstance(value, dict) else {}
        sources = {leaf: found.sources.get(f"{name}.{leaf}") or found.sources[name] for leaf in leaves or [""]}
        shown = "  ".join(f"{leaf} {_text(item)}" for leaf, item in leaves.items()) if leaves else _text(value)
        distinct = set(sources.values())
        yield name, shown, distinct.pop() if len(distinct) == 1 else ", ".join(f"{k}: {v}" for k, v in sources.items())


def _text(value: object) -> str:
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


def _alert(alert: dict[str, Any]) -> str:
    """One alert in a line: `long-queue (critical): pending_above 5000 for 60 s`."""
    (condition,) = alert["when"].items()
    lasting = f" for {_text(alert['for_seconds'])} s" if alert["for_seconds"] else ""
    return f"{alert['name']} ({alert['severity']}): {condition[0]} {_text(condition[1])}{lasting}"


def _draw(settings: Settings) -> None:
    console = Console()
    for title, found in _sections(settings):
        table = Table("field", "value", "from", title=Text(title), title_justify="left", title_style="bold")
        for name, value, source in _rows(found):
            table.add_row(name, value, source, style="dim" if source == "default" else "")
        console.print(table)


def _write(settings: Settings) -> None:
    for title, found in _sections(settings):
        click.echo(title)
        for name, value, source in _rows(found):
            click.echo(f"  {name:<22} {value:<44}  {source}".rstrip())
