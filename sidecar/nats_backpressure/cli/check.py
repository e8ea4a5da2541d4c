"""`check`: whether a file can be used, and what would be in force with it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from nats_backpressure.cli.output import FIELDS, fields, grid
from nats_backpressure.config.settings import BadSettings, Settings, load_settings
from nats_backpressure.policy.parse import PolicyEntry, over_default, policy_document
from nats_backpressure.policy.schema import Effective

EX_CONFIG = 78
"""The exit code of sysexits.h for a configuration that cannot be used."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Validate FILE under the present environment and print the policies that would be in force.

    Exits with 0, or with 78 and one line for each mistake.
    """
    try:
        settings = load_settings(file, os.environ)
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


def _draw(settings: Settings) -> None:
    for title, found in _sections(settings):
        grid(FIELDS, list(fields(policy_document(found.policy), found.sources)), title, quiet="default")


def _write(settings: Settings) -> None:
    for title, found in _sections(settings):
        click.echo(title)
        for name, value, source in fields(policy_document(found.policy), found.sources):
            click.echo(f"  {name:<22} {value:<44}  {source}".rstrip())
