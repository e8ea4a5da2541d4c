"""`permissions`: prints the rights that each kind of program needs on a NATS server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import asdict, replace

from nats_backpressure.cli.options import json_option, parse_subject
from nats_backpressure.cli.output import print_json
from nats_backpressure.cli.settings_file import load_or_exit
from nats_backpressure.config.settings import Settings
from nats_backpressure.protocol.reply_limits import reply_prefix_allowed
from nats_backpressure.protocol.subjects import Names

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.permissions import Installation

ROLES = ("sidecar", "gateway", "consumer", "operator")
HEADER = """\
# The users of nats-backpressure and their rights, for a nats-server: `include` this file from its configuration.
# Printed by `nats-backpressure permissions`; with other names: see its --help. What is not listed is denied.
# Who could subscribe to the inbox of another user would receive its replies and the messages that it pulls: so each
# role has an inbox prefix of its own, which its clients set. The sidecar and its commands do that by themselves.
# Do not add allow_responses: who sends a request would choose where the sidecar publishes.
"""


def parse_inbox_prefix(text: str) -> str:
    """A prefix of reply subjects that the sidecar answers to without `service.reply_prefixes`."""
    if not reply_prefix_allowed(text) or set(text) & set("*>"):
        raise click.BadParameter("must be `_INBOX`, or begin with `_INBOX.` or `_INBOX_`, without `*` and `>`")
    return text


@click.command(short_help="Print the rights that programs need on a NATS server.")
@click.option("--role", type=click.Choice(ROLES), help="Only this one.  [default: all four]")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take the names, the JetStream domain and the prefixes from this settings file.",
)
@click.option("--name", metavar="NAME", help="Name of the installation.  [default: that of FILE, else backpressure]")
@click.option("--stream", metavar="STREAM", help="The stream that the consumer pulls from.  [default: ROUTER]")
@click.option("--consumer", metavar="CONSUMER", help="Its consumer.  [default: router]")
@click.option(
    "--subject",
    metavar="SUBJECT",
    type=parse_subject,
    help="What gateways publish.  [default: beamline.router.v1.decide]",
)
@click.option(
    "--inbox-prefix",
    metavar="PREFIX",
    type=parse_inbox_prefix,
    help="Prefix of the inboxes of those who ask, in place of one for each role. Users with the same one receive each "
    "other's replies and pulled messages; `_INBOX` is for clients that cannot set one.",
)
@json_option("Print JSON, for a user's JWT or another tool.")
def permissions(
    role: str | None,
    config: Path | None,
    name: str | None,
    stream: str | None,
    consumer: str | None,
    subject: str | None,
    inbox_prefix: str | None,
    as_json: bool,
) -> None:
    """Print the users of a nats-server with all rights that they need, and no others; passwords come from variables
    of the server's environment, such as BACKPRESSURE_SIDECAR_PASSWORD."""
    from nats_backpressure.adapters.nats.permissions import permissions as rights_of
    from nats_backpressure.adapters.nats.server_configuration import server_configuration

    given = {"stream": stream, "consumer": consumer, "subject": subject, "asking": inbox_prefix}
    about = replace(_installation(config, name), **{key: value for key, value in given.items() if value is not None})
    roles = (role,) if role else ROLES
    if as_json:
        print_json({each: asdict(rights_of(each, about)) for each in roles})
    else:
        click.echo(HEADER + server_configuration(about, roles), nl=False)


def _installation(config: Path | None, name: str | None) -> Installation:
    from nats_backpressure.adapters.nats.permissions import Installation

    settings = load_or_exit(config) if config else Settings()
    return Installation(
        names=Names(name or settings.name),
        api=settings.nats.api_prefix,
        inbox=settings.nats.inbox_prefix,
        reply_prefixes=settings.service.reply_prefixes,
        alias=settings.service.status_alias,
        creates=settings.publish.manage_resources,
    )
