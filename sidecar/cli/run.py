"""`run`: the sidecar itself, beside a NATS server or with one of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from sidecar.settings import BadSettings, load

EX_CONFIG = 78
"""The exit code of sysexits.h for a configuration that cannot be used."""


@click.command()
@click.option("--config", "path", type=click.Path(path_type=Path), envvar="BACKPRESSURE_CONFIG", help="YAML file.")
@click.option("--embedded", is_flag=True, help="Start a NATS server of its own (extra `embedded`).")
@click.option("--embedded-port", type=click.IntRange(0, 65_535), default=0, help="Its port; 0 picks a free one.")
@click.option("--embedded-store", type=click.Path(path_type=Path), help="Its directory; default: a temporary one.")
def run(path: Path | None, embedded: bool, embedded_port: int, embedded_store: Path | None) -> None:
    """Observe, judge, publish and answer until SIGTERM."""
    try:
        settings = load(path, os.environ)
    except BadSettings as bad:
        for line in bad.lines:
            click.echo(line, err=True)
        sys.exit(EX_CONFIG)
    # Imported late: a mistake in the file is told without loading the client, the server and the rest.
    from sidecar.main import EmbeddedOptions, start

    own = EmbeddedOptions(embedded_port, embedded_store) if embedded else None
    sys.exit(start(settings, own, lambda: load(path, os.environ)))
