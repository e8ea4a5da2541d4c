"""The command line: reads arguments and prints results; it evaluates nothing itself."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

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
    "forget",
    "doctor",
    "permissions",
    "schema",
    "completion",
)
"""Each is in the module of its name, which is imported when it is needed: `run` needs 3 MiB less without the others."""


INTERRUPTED = 130
"""The exit code after Ctrl-C, as of a program that SIGINT ends."""
BROKEN_PIPE = 141
"""The exit code where the reader of the output has ended, as of a program that SIGPIPE ends."""


@contextmanager
def _written() -> Iterator[None]:
    """Ends the program with one line at most where its output cannot be written, and without one at Ctrl-C, also while
    a command is loaded."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # here, where an error of it has a handler
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF):
            raise
        # What is still in the buffer would be written again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(BROKEN_PIPE)
        raise click.ClickException(f"the output cannot be written: {(error.strerror or '').lower()}") from None


class Commands(click.Group):
    """The commands, in the order of COMMANDS. Output that cannot be written ends a command without a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # closed by the caller: what is printed there is dropped
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the process ends
        return super().main(*args, **kwargs)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _written():  # --help and --version print here
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _written():
            return super().invoke(ctx)

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

    record, status, decide, events, policy, override and forget need NATS and a running sidecar; doctor needs NATS;
    the others need neither.

    Exit codes: 0 done; 1 something is wrong, with one line on standard error (doctor: warnings); 2 the command line is
    wrong (doctor: errors); 65 the recording cannot be read; 78 the settings cannot be used; 130 interrupted; 141 the
    reader of the output has ended.
    """
