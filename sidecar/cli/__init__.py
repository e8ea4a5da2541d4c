"""The door: reads arguments, prints results, decides nothing."""

from __future__ import annotations

import click

from sidecar import __version__
from sidecar.cli.check import check
from sidecar.cli.decide import decide
from sidecar.cli.demo import demo
from sidecar.cli.events import events
from sidecar.cli.override import override
from sidecar.cli.policy import policy
from sidecar.cli.replay import replay
from sidecar.cli.run import run
from sidecar.cli.schema import schema
from sidecar.cli.status import status


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nats-backpressure")
def main() -> None:
    """Watch NATS JetStream consumers, judge how close each subject is to overload, and say so before it is."""


for command in (run, replay, check, demo, status, decide, events, policy, override, schema):
    main.add_command(command)
