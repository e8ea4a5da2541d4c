"""The command line: reads arguments and prints results; it evaluates nothing itself."""

from __future__ import annotations

import click

from nats_backpressure import __version__
from nats_backpressure.cli.check import check
from nats_backpressure.cli.decide import decide
from nats_backpressure.cli.demo import demo
from nats_backpressure.cli.events import events
from nats_backpressure.cli.override import override
from nats_backpressure.cli.policy import policy
from nats_backpressure.cli.replay import replay
from nats_backpressure.cli.run import run
from nats_backpressure.cli.schema import schema
from nats_backpressure.cli.status import status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nats-backpressure")
def main() -> None:
    """Watches JetStream consumers and tells gateways and workers when to slow down.

    status, decide, events, policy and override need NATS and a running sidecar; the others need no sidecar.
    """


for command in (run, replay, check, demo, status, decide, events, policy, override, schema):
    main.add_command(command)
