"""The command line: reads arguments and prints results; it evaluates nothing itself."""

from __future__ import annotations

from importlib import import_module

import click

from nats_backpressure import __version__

COMMANDS = (
    "run",
    "record",
    "replay",
    "check",
    "demo",
    "status",
    "decide",
    "events",
    "policy",
    "override",
    "permissions",
    "schema",
)
"""Each is in the module of its name, which is imported when it is needed: `run` needs 3 MiB less without the others."""


class Commands(click.Group):
    """The commands, in the order of COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"{__name__}.{cmd_name}"), cmd_name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nats-backpressure")
def main() -> None:
    """Watches JetStream consumers and tells gateways and workers when to slow down.

    record, status, decide, events, policy and override need NATS and a running sidecar; the others need no sidecar.
    """
