"""`doctor`: checks an installation as its sidecar sees it, and prints what each problem costs and what ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from nats_backpressure.cli.options import json_option, parse_timeout
from nats_backpressure.cli.output import print_json, printable
from nats_backpressure.cli.settings_file import load_or_exit
from nats_backpressure.config.nats import Nats, variables_in
from nats_backpressure.config.settings import BadSettings, load_settings
from nats_backpressure.doctor.examination import examine
from nats_backpressure.doctor.findings import Checked, exit_code

MARKS = {"ok": "ok     ", "note": "note   ", "unknown": "unknown", "warning": "warning", "error": "ERROR  "}


@click.command(short_help="Check an installation.")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="BACKPRESSURE_CONFIG",
    help="Settings file of the sidecar (YAML).  [default: $BACKPRESSURE_CONFIG, else built-in defaults]",
)
@click.option(
    "--timeout",
    type=parse_timeout,
    metavar="DURATION",
    default="5s",
    show_default=True,
    help="Time to connect, from 0.1s to 60s.",
)
@json_option("Print the findings as one JSON document.")
def doctor(path: Path | None, timeout: float, as_json: bool) -> None:
    """Check an installation with the settings file and the login of its sidecar, which may run or not: connection,
    server, JetStream, rights, resources, clocks, what is watched, policies, overrides, and other installations. Each
    problem is printed with what it costs and the line that ends it.

    It changes nothing. Each right is tried with a message that no API and no stream takes.

    Exits with 0 if all is right (notes do not count), with 1 after warnings, with 2 after errors, with 78 if the
    settings cannot be used.
    """
    from nats_backpressure.cli.doctor_facts import read_facts

    settings = load_or_exit(path)
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # with TLS it warns of a result that nats-py cannot change
    try:
        facts = asyncio.run(read_facts(settings, _replaced_by(path, settings.nats), timeout))
    except KeyboardInterrupt:
        sys.exit(130)
    findings = examine(facts)
    if as_json:
        totals = {level: sum(each.level == level for each in findings) for level in ("error", "warning")}
        print_json({"errors": totals["error"], "warnings": totals["warning"], "findings": findings})
    else:
        _print_findings(findings)
    sys.exit(exit_code(findings))


def _print_findings(findings: Sequence[Checked]) -> None:
    width = max(len(each.check) for each in findings)
    for each in findings:
        click.echo(printable(f"{MARKS[each.level]}  {each.check:<{width}}  {each.problem}"))
        indent = " " * (len(MARKS["ok"]) + width + 4)
        if each.cost:
            click.echo(printable(f"{indent}cost: {each.cost}"))
        if each.remedy:
            click.echo(printable(f"{indent}do:   {each.remedy}"))


def _replaced_by(path: Path | None, used: Nats) -> tuple[str, ...]:
    """The variables of the environment that replace what the file has about NATS; `used`: what both come to."""
    file = path or (Path(given) if (given := os.environ.get("BACKPRESSURE_CONFIG")) else None)
    try:
        own = load_settings(file, {}).nats if file is not None else Nats()
    except BadSettings:  # it is complete with the environment only
        return ()
    return () if own in (Nats(), used) else variables_in(os.environ)
