"""`demo`: runs an overload with and without backpressure, on an embedded NATS server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console

from nats_backpressure.cli.options import json_option

MODES = ("none", "binary", "adaptive")


@click.command(short_help="Run an overload with or without backpressure.")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="binary",
    show_default=True,
    help="none: no backpressure; binary: all or nothing; adaptive: a share.",
)
@click.option(
    "--overload",
    type=click.FloatRange(0.1, 20),
    default=3.0,
    show_default=True,
    help="Load during the overload, as a multiple of the worker's capacity.",
)
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=8.0, show_default=True, help="Seconds that the overload lasts."
)
@json_option("Print only the summary, as one JSON object.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the run to this HTML file.")
def demo(mode: str, overload: float, seconds: float, as_json: bool, report: Path | None) -> None:
    """Run a gateway, a worker (router), a sidecar and a load generator as processes, on an embedded NATS server."""
    from nats_backpressure.adapters.embedded_server import CannotEmbed, EmbeddedServer
    from nats_backpressure.demo.html_report import html_page
    from nats_backpressure.demo.run import CannotRun, run_demo
    from nats_backpressure.demo.scenario import Scenario
    from nats_backpressure.demo.summary import RunData, summarize
    from nats_backpressure.demo.terminal_output import NoOutput, TerminalOutput

    scenario = msgspec.convert({"mode": mode, "overload": overload, "seconds": seconds}, Scenario)
    output = TerminalOutput(Console())

    async def run() -> RunData:
        server = EmbeddedServer()
        await server.start()
        try:
            return await run_demo(scenario, server.url, NoOutput() if as_json else output)
        finally:
            await server.stop()

    try:
        data = asyncio.run(run())
        summary = summarize(data)
        if report is not None:
            report.write_text(html_page(data, summary))
    except (CannotRun, CannotEmbed, OSError) as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
    else:
        output.print_summary(summary)
    succeeded = summary.done and (mode == "none" or overload <= 1 or summary.shed)
    sys.exit(0 if succeeded else 1)
