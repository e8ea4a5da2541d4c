"""`check`: validates a settings file and prints the policies that would apply with it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from nats_backpressure.cli.options import json_option
from nats_backpressure.cli.output import POLICY_HEADERS, policy_rows, print_json, print_table
from nats_backpressure.cli.settings_file import EX_CONFIG, load_or_exit
from nats_backpressure.config.settings import Settings
from nats_backpressure.policy.parse import PolicyEntry, over_default, policy_document
from nats_backpressure.policy.schema import Effective


@click.command(short_help="Validate a settings file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--without-secrets",
    is_flag=True,
    help="Do not read the files that `nats` names: for a machine that does not have them.",
)
@json_option("Print the policies as one JSON document.")
def check(file: Path, without_secrets: bool, as_json: bool) -> None:
    """Validate FILE (`-` for standard input) with the NATS_* environment variables applied, and print the policies
    that would apply.

    The files that `nats` names (logins, certificates) are read, too. Exits with 0, or with 78 and one line for each
    mistake.
    """
    settings = load_or_exit(file)
    if not without_secrets:
        _exit_with_file_problems(file, settings)
    if as_json:
        _print_json(settings)
    elif sys.stdout.isatty():
        _print_tables(settings)
    else:
        _print_text(settings)


def _exit_with_file_problems(file: Path, settings: Settings) -> None:
    from nats_backpressure.adapters.nats.credentials import file_problems

    problems = file_problems(settings.nats)
    for problem in problems:
        click.echo(f"{file}: nats: {problem}", err=True)
    if problems:
        sys.exit(EX_CONFIG)


def _policies_by_pattern(settings: Settings) -> Iterator[tuple[str, Effective]]:
    """Each configured pattern and the policy that applies to it, then the policy for all other subjects."""
    for entry in settings.policies:
        for subject in entry.subjects:
            yield subject + _consumer_names(entry), over_default(entry)
    yield "(all other subjects)" if settings.policies else "(all subjects)", over_default(PolicyEntry())


def _consumer_names(entry: PolicyEntry) -> str:
    return "" if entry.consumers == ("*",) else f"  (consumers {', '.join(entry.consumers)})"


def _print_json(settings: Settings) -> None:
    policies = [
        {"pattern": title, "policy": policy_document(effective.policy), "sources": effective.sources}
        for title, effective in _policies_by_pattern(settings)
    ]
    print_json({"policies": policies})


def _print_tables(settings: Settings) -> None:
    for title, effective in _policies_by_pattern(settings):
        rows = list(policy_rows(policy_document(effective.policy), effective.sources))
        print_table(POLICY_HEADERS, rows, title, dim_if="default")


def _print_text(settings: Settings) -> None:
    for title, effective in _policies_by_pattern(settings):
        click.echo(title)
        for name, value, source in policy_rows(policy_document(effective.policy), effective.sources):
            click.echo(f"  {name:<22} {value:<44}  {source}".rstrip())
