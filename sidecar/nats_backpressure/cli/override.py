"""`override`: the last word of an operator on what a pattern covers, for a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click
import msgspec

from nats_backpressure.cli.command import run_command
from nats_backpressure.cli.governed_subjects import bucket, check, governed, over, stricter
from nats_backpressure.cli.options import Target, asks, between, subject
from nats_backpressure.cli.output import note
from nats_backpressure.cli.policy_bucket import PolicyKey, change
from nats_backpressure.policy.external import LONGEST_OVERRIDE
from nats_backpressure.policy.parse import OverrideEntry
from nats_backpressure.protocol.timestamps import format_rfc3339

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient


@click.command()
@click.argument("subject", type=subject)
@click.argument("action", type=click.Choice(("open", "reject", "auto")))
@click.option(
    "--for", "lasting", type=between(1, LONGEST_OVERRIDE), metavar="DURATION", help="How long, such as 10m; at most 7d."
)
@click.option("--force", is_flag=True, help="Put it also where it governs no watched subject.")
@asks
def override(target: Target, subject: str, action: str, lasting: float | None, force: bool) -> None:
    """Answer for all that SUBJECT (or a pattern) covers `open` or `reject`, whatever is measured and whatever its
    policies say, until the time given with --for is over; `auto` ends that at once.

    Of several the most specific one counts. Exits with 1 where it governs no watched subject, unless with --force.
    """
    if (action == "auto") != (lasting is None):
        raise click.UsageError("--for goes with open and reject: say how long (--for 10m)")
    place = PolicyKey(subject, overrides=True)

    async def put(line: ServiceClient, seconds: float) -> None:
        until = format_rfc3339(time.time() + seconds)
        value = msgspec.json.encode({"action": action, "until": until})
        found = await governed(line, place, await bucket(target, line), value)
        check(place, found, force)
        await change(target, line, place, value)
        click.echo(f"{subject}: {action} until {until}" + (f"; {found.line()}" if found else ""))
        if found and action == "open" and (still := stricter(found)):
            note(still)

    async def end(line: ServiceClient) -> None:
        held = await bucket(target, line)
        wider = [one for one in over(held, subject) if one.pattern != subject]
        if place.key not in held:
            others = f"; {_told(wider[0])}: end that one" if wider else ""
            raise click.ClickException(f"no override stands for {subject}{others}")
        found = await governed(line, place, held, held[place.key].value)
        await change(target, line, place, b"")
        click.echo(f"{subject}: auto" + (f"; {found.line('governed')}" if found else ""))
        if wider:
            note(f"{_told(wider[0])}, and governs {subject} from now on")

    run_command(target, end if lasting is None else lambda line: put(line, lasting))


def _told(one: OverrideEntry) -> str:
    return f"{one.pattern} is overridden ({one.override.action} until {format_rfc3339(one.override.until)})"
