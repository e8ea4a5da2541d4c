"""`run`: the sidecar itself, beside a NATS server or with one of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nats_backpressure.config.settings import BadSettings, load_settings

if TYPE_CHECKING:
    from nats_backpressure.recording.recorder import RecordingFile

EX_CONFIG = 78
"""The exit code of sysexits.h for a configuration that cannot be used."""


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), envvar="BACKPRESSURE_CONFIG", help="YAML file.")
@click.option("--embedded", is_flag=True, help="Start a NATS server of its own (extra `embedded`).")
@click.option("--embedded-port", type=click.IntRange(0, 65_535), default=0, help="Its port; 0 picks a free one.")
@click.option("--embedded-store", type=click.Path(path_type=Path), help="Its directory; default: a temporary one.")
@click.option("--record", type=click.Path(path_type=Path), help="Write what is observed to this file, for `replay`.")
@click.option("--record-limit", type=click.IntRange(1), default=1024, help="MiB; then it goes on anew beside FILE.1.")
def run(
    path: Path | None,
    embedded: bool,
    embedded_port: int,
    embedded_store: Path | None,
    record: Path | None,
    record_limit: int,
) -> None:
    """Observe, judge, publish and answer until SIGTERM."""
    try:
        settings = load_settings(path, os.environ)
    except BadSettings as bad:
        for line in bad.lines:
            click.echo(line, err=True)
        sys.exit(EX_CONFIG)
    # Imported late: a mistake in the file is told without loading the client, the server and the rest.
    from nats_backpressure.app import EmbeddedOptions, start

    own = EmbeddedOptions(embedded_port, embedded_store) if embedded else None
    sys.exit(start(settings, own, lambda: load_settings(path, os.environ), _tape(record, record_limit)))


def _tape(record: Path | None, limit: int) -> RecordingFile | None:
    from nats_backpressure.recording.recorder import RecordingFile

    try:
        return RecordingFile(record, limit << 20) if record else None
    except OSError as error:
        click.echo(f"--record: {record}: cannot be written: {(error.strerror or str(error)).lower()}", err=True)
        sys.exit(EX_CONFIG)
