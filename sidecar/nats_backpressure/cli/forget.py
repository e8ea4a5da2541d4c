"""`forget`: removes a subject whose consumers are deleted, an hour before it would go by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nats_backpressure.cli.command import run_command
from nats_backpressure.cli.options import Target, connection_flags, json_option, parse_subject
from nats_backpressure.cli.output import print_json
from nats_backpressure.protocol.subjects import encode

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient


@click.command(short_help="Remove a subject whose consumers are gone.")
@click.argument("subject", type=parse_subject)
@json_option("Print the result as one JSON document.")
@connection_flags
def forget(target: Target, subject: str, as_json: bool) -> None:
    """Remove SUBJECT, whose consumers were deleted, from the state bucket, the list and the metrics.

    By itself it goes an hour after its last consumer. Its events stay in the event stream. Exits with 1 if it has
    consumers, or if they cannot be read now: then nothing is removed.
    """

    async def request(service: ServiceClient) -> None:
        await service.query(f"forget.{encode(subject)}")
        if as_json:
            print_json({"subject": subject, "result": "removed"})
        else:
            click.echo(f"{subject}: removed")

    run_command(target, request)
