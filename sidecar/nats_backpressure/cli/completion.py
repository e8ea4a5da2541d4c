"""`completion`: prints the script with which a shell completes the commands and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

VARIABLE = "_NATS_BACKPRESSURE_COMPLETE"
"""The variable of the environment with which the script asks; click's own rule names it so."""


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands and options. For bash: put
    `source <(nats-backpressure completion bash)` into ~/.bashrc; for zsh the same with `zsh` into ~/.zshrc; for fish:
    `nats-backpressure completion fish > ~/.config/fish/completions/nats-backpressure.fish`."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(context.find_root().command, {}, "nats-backpressure", VARIABLE).source())
