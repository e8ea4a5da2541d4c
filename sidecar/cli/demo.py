"""`demo`: the main job, on a NATS server of its own, told on the terminal."""

from __future__ import annotations

import asyncio
import sys

import click
from rich.console import Console


@click.command()
def demo() -> None:
    """Show a burst, the backpressure it brings and the recovery, on an embedded NATS server."""
    from sidecar.main import with_embedded

    console = Console()
    try:
        told = asyncio.run(with_embedded(lambda server: _tell(server, console)))
    except KeyboardInterrupt:
        told = False
    sys.exit(0 if told else 1)


async def _tell(server: object, console: Console) -> bool:
    from sidecar.demo.story import tell

    return await tell(server, console)
