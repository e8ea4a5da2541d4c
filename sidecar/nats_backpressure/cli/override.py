"""`override`: admits or rejects all requests for the subjects that a pattern matches, for a limited time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from nats_backpressure.cli.command import run_command
from nats_backpressure.cli.governed_subjects import (
    find_governed,
    overrides_covering,
    require_governed,
    stricter_pattern,
)
from nats_backpressure.cli.options import Target, connection_flags, duration_between, json_option, parse_subject
from nats_backpressure.cli.output import print_note
from nats_backpressure.cli.policy_bucket import PolicyKey, read_bucket, server_time, write_change
from nats_backpressure.cli.policy_output import print_change, print_listed
from nats_backpressure.policy.external import LONGEST_OVERRIDE
from nats_backpressure.policy.parse import OverrideEntry
from nats_backpressure.protocol.timestamps import format_rfc3339

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient


class _SetByDefault(click.Group):
    """`override PATTERN ...` is `override set PATTERN ...`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["set", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_SetByDefault, short_help="Admit or reject all requests for some time.")
def override() -> None:
    """Admit or reject all requests for some subjects for some time: `override PATTERN open|reject --for 10m`, which is
    short for `override set`; `override PATTERN auto` ends it, `override ls` lists them."""


@override.command("ls", short_help="List the overrides.")
@click.argument("pattern", required=False, type=parse_subject)
@json_option("Print the list as one JSON document.")
@connection_flags
def ls(target: Target, pattern: str | None, as_json: bool) -> None:
    """List the overrides in the policy bucket in NATS (KV), those that have ended too: what each does, until when, and
    how many watched subjects it governs. With PATTERN: those that it covers, or that cover it."""
    run_command(target, lambda service: print_listed(target, service, pattern, as_json, overrides=True))


@override.command("set", short_help="Start an override, or end it.")
@click.argument("subject", metavar="PATTERN", type=parse_subject)
@click.argument("action", type=click.Choice(("open", "reject", "auto")))
@click.option(
    "--for",
    "duration",
    type=duration_between(1, LONGEST_OVERRIDE),
    metavar="DURATION",
    help="Required with open and reject: how long it is in force, such as 10m; at most 7d.",
)
@click.option("--force", is_flag=True, help="Write it even if it would apply to no watched subject now.")
@json_option("Print the result as one JSON document.")
@connection_flags
def set_(target: Target, subject: str, action: str, duration: float | None, force: bool, as_json: bool) -> None:
    """Admit (`open`) or reject all requests for the subject PATTERN, or for all subjects that it matches, for the time
    --for, by the clock of the NATS server. Measurements and policies do not change this; requests of the priority
    `critical` are admitted all the same. `auto` removes the override now.

    If several overrides match a subject, the most specific one applies. Exits with 1 if it would apply to no watched
    subject now, unless --force is given.
    """
    if (action == "auto") != (duration is None):
        raise click.UsageError("open and reject need --for, such as --for 10m; auto does not take it")
    key = PolicyKey(subject, is_override=True)

    async def put(service: ServiceClient, seconds: float) -> None:
        now = await server_time(target, service)
        until = format_rfc3339(now + seconds)
        value = msgspec.json.encode({"action": action, "until": until})
        subjects = await find_governed(service, key, await read_bucket(target, service), value, now)
        require_governed(key, subjects, force)
        await write_change(target, service, key, value)
        print_change(subject, f"{action} until {until}", subjects, as_json, action=action, until=until)
        if subjects and action == "open" and (note := stricter_pattern(subjects)):
            print_note(note)

    async def end(service: ServiceClient) -> None:
        bucket, now = await read_bucket(target, service), await server_time(target, service)
        wider = [entry for entry in overrides_covering(bucket, subject, now) if entry.pattern != subject]
        if key.name not in bucket:
            others = f"; {_format_override(wider[0])}: end that one" if wider else ""
            raise click.ClickException(f"there is no override for {subject}{others}")
        subjects = await find_governed(service, key, bucket, bucket[key.name].value, now)
        await write_change(target, service, key, b"")
        print_change(subject, "auto", subjects, as_json, "governed", action="auto")
        if wider:
            print_note(f"{_format_override(wider[0])}, which now governs {subject}")

    run_command(target, end if duration is None else lambda service: put(service, duration))


def _format_override(entry: OverrideEntry) -> str:
    return f"{entry.pattern} is overridden ({entry.override.action} until {format_rfc3339(entry.override.until)})"
