"""`policy`: what is in force, and what the bucket adds to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct

from sidecar import written
from sidecar.cli.bucket import Document, change, checked, refuse
from sidecar.cli.options import Target, asks, subject
from sidecar.cli.show import FIELDS, fields, grid, print_json
from sidecar.cli.talk import read, talk
from sidecar.core.document import Problem, Problems
from sidecar.settings import problem_line
from sidecar.wire.subjects import encode

if TYPE_CHECKING:
    from sidecar.edges.asking import Line


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

    async def story(line: Line) -> None:
        document = await line.ask(f"get.policy.{encode(subject)}")
        if as_json:
            print_json(document)
            return
        found = read(document, _Effective)
        _effective(subject, found.policy, found.sources)
        for each in found.consumers:
            _effective(f"{each.stream} > {each.consumer}", each.policy, each.sources)

    talk(target, story)


def _effective(title: str, policy: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    grid(FIELDS, list(fields(policy, sources)), title, quiet="default")


@policy.command("set")
@click.argument("pattern", type=subject)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@asks
def set_(target: Target, pattern: str, file: Path) -> None:
    """Put the policy in FILE (YAML or JSON, `-` for standard input) in force for PATTERN.

    It replaces what the bucket holds for PATTERN; only an override stays, unless FILE has one itself. Exits with 1 and
    one line for each mistake, and the bucket is as it was.
    """
    document = _document(file)

    async def story(line: Line) -> None:
        revision = await change(
            target, line, pattern, lambda was: {k: v for k, v in was.items() if k == "override"} | document
        )
        click.echo(f"{pattern}: in the bucket as revision {revision}")

    talk(target, story)


def _document(file: Path) -> Document:
    """The policy in a file, checked. Exits with 1 and a line for each mistake, as editors like it."""
    try:
        with click.open_file(str(file), "rb") as opened:
            data = opened.read(written.LARGEST_FILE + 1)
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    lines: dict[str, int] = {}
    found = Problems()
    document = written.document(data, lines, found)

    def where(problem: Problem) -> str:
        return problem_line(problem, lines, str(file))

    refuse(map(where, found.told()))
    if not isinstance(document, dict) or not document:
        raise click.ClickException(f"{file}: must be a mapping of the fields of a policy")
    checked(document, where)
    return document


@policy.command()
@click.argument("pattern", type=subject)
@asks
def rm(target: Target, pattern: str) -> None:
    """Take the policy for PATTERN out of the bucket, with its override."""

    async def story(line: Line) -> None:
        if not await change(target, line, pattern, lambda was: {}):
            raise click.ClickException(f"the bucket holds no policy for {pattern}")
        click.echo(f"{pattern}: taken out")

    talk(target, story)
