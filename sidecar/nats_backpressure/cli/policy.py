"""`policy`: what is in force, and what the bucket adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct

from nats_backpressure.cli.command import read, run_command
from nats_backpressure.cli.governed_subjects import bucket, check, governed
from nats_backpressure.cli.options import Target, asks, subject
from nats_backpressure.cli.output import FIELDS, fields, grid, print_json
from nats_backpressure.cli.policy_bucket import PolicyKey, change, checked, refuse
from nats_backpressure.config import yaml_source
from nats_backpressure.config.settings import problem_line
from nats_backpressure.policy.validation import Problem, Problems
from nats_backpressure.protocol.subjects import encode

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient


class _Consumer(Struct, frozen=True):
    stream: str
    consumer: str
    policy: dict[str, Any]
    sources: dict[str, str]


class _Effective(Struct, frozen=True):
    policy: dict[str, Any]
    sources: dict[str, str]
    consumers: tuple[_Consumer, ...] = ()


@click.group()
def policy() -> None:
    """Show and change policies; those in the bucket are in force within a second."""


@policy.command()
@click.argument("subject", type=subject)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON document.")
@asks
def get(target: Target, subject: str, as_json: bool) -> None:
    """Show what is in force for SUBJECT, and where each field comes from."""

    async def story(line: ServiceClient) -> None:
        document = await line.ask(f"get.policy.{encode(subject)}")
        if as_json:
            print_json(document)
            return
        found = read(document, _Effective)
        _effective(subject, found.policy, found.sources)
        for each in found.consumers:
            _effective(f"{each.stream} > {each.consumer}", each.policy, each.sources)

    run_command(target, story)


def _effective(title: str, policy: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    grid(FIELDS, list(fields(policy, sources)), title, quiet="default")


@policy.command("set")
@click.argument("pattern", type=subject)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="Put it also where it governs no watched subject.")
@asks
def set_(target: Target, pattern: str, file: Path, force: bool) -> None:
    """Put the policy in FILE (YAML or JSON, `-` for standard input) in force for PATTERN, in the place of the one that
    the bucket holds for PATTERN.

    Exits with 1 and one line for each mistake, and where it would govern no watched subject (unless with --force); the
    bucket is then as it was.
    """
    place, value = PolicyKey(pattern), _document(file)

    async def story(line: ServiceClient) -> None:
        found = await governed(line, place, await bucket(target, line), value)
        check(place, found, force)
        revision = await change(target, line, place, value)
        click.echo(f"{pattern}: in the bucket as revision {revision}" + (f"; {found.line()}" if found else ""))

    run_command(target, story)


def _document(file: Path) -> bytes:
    """The policy in a file, checked, as it is stored. Exits with 1 and a line for each mistake, as editors like it."""
    try:
        with click.open_file(str(file), "rb") as opened:
            data = opened.read(yaml_source.LARGEST_FILE + 1)
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    lines: dict[str, int] = {}
    found = Problems()
    document = yaml_source.load_yaml(data, lines, found)

    def where(problem: Problem) -> str:
        return problem_line(problem, lines, str(file))

    refuse(map(where, found.listed()))
    if not isinstance(document, dict) or not document:
        raise click.ClickException(f"{file}: must be a mapping of the fields of a policy")
    return checked(document, where)


@policy.command()
@click.argument("pattern", type=subject)
@click.option("--force", is_flag=True, help="Take it out also where it governs no watched subject.")
@asks
def rm(target: Target, pattern: str, force: bool) -> None:
    """Take the policy for PATTERN out of the bucket. Exits with 1 where it governs no watched subject, unless with
    --force. An override stays: end it with `override PATTERN auto`."""
    place = PolicyKey(pattern)

    async def story(line: ServiceClient) -> None:
        held = await bucket(target, line)
        if place.key not in held:
            raise click.ClickException(f"the bucket holds no policy for {pattern}")
        found = await governed(line, place, held, held[place.key].value)
        check(place, found, force)
        await change(target, line, place, b"")
        click.echo(f"{pattern}: taken out" + (f"; {found.line('governed')}" if found else ""))

    run_command(target, story)
