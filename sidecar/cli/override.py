"""`override`: the last word of an operator on a subject, for a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
from msgspec import Struct

from sidecar.cli.bucket import Document, change
from sidecar.cli.options import Target, asks, between, subject
from sidecar.cli.show import note
from sidecar.cli.talk import read, talk
from sidecar.core.moments import written
from sidecar.ports import Unavailable
from sidecar.wire.subjects import encode

if TYPE_CHECKING:
    from sidecar.edges.asking import Line

WEEK = 7 * 86_400.0


class _Effective(Struct, frozen=True):
    sources: dict[str, str]


@click.command()
@click.argument("subject", type=subject)
@click.argument("action", type=click.Choice(("open", "reject", "auto")))
@click.option("--for", "lasting", type=between(1, WEEK), metavar="DURATION", help="How long, such as 10m; at most 7d.")
@asks
def override(target: Target, subject: str, action: str, lasting: float | None) -> None:
    """Answer for SUBJECT (or a pattern) `open` or `reject`, whatever is measured, until the time given with --for is
    over; `auto` ends that at once."""
    if (action == "auto") != (lasting is None):
        raise click.UsageError("--for goes with open and reject: say how long (--for 10m)")
    until = None if lasting is None else written(time.time() + lasting)

    alone = False

    def instead(was: Document) -> Document:
        nonlocal alone
        alone = not was
        rest = {name: value for name, value in was.items() if name != "override"}
        return rest if until is None else {**rest, "override": {"action": action, "until": until}}

    async def story(line: Line) -> None:
        governed = until is not None and await _governed(line, subject)
        await change(target, line, subject, instead)
        click.echo(f"{subject}: {action}" + (f" until {until}" if until else ""))
        if governed and alone:
            note(
                f"a wider policy in the bucket does not reach {subject} while this one stands, "
                f"also after it expired: end it with `override {subject} auto`"
            )

    talk(target, story)


async def _governed(line: Line, subject: str) -> bool:
    """Whether the bucket has a say in what is in force now; not for what nobody watches, or nobody answers for."""
    try:
        return "bucket" in read(await line.ask(f"get.policy.{encode(subject)}"), _Effective).sources.values()
    except Unavailable:
        return False
