"""`demo`: what an overload does, with and without backpressure, on a NATS server of its own."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console

MODES = ("none", "binary", "adaptive")


@click.command()
@click.option("--mode", type=click.Choice(MODES), default="binary", show_default=True, help="What the gateway does.")
@click.option("--overload", type=click.FloatRange(0.1, 20), default=3.0, show_default=True, help="Times the capacity.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=8.0, show_default=True, help="How long it lasts.")
@click.option("--json", "as_json", is_flag=True, help="Tell nothing but the summary, as one JSON object.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the run as an HTML page.")
def demo(mode: str, overload: float, seconds: float, as_json: bool, report: Path | None) -> None:
    """Show a gateway, a router and their load as processes of their own, on an embedded NATS server."""
    from nats_backpressure.adapters.embedded_server import CannotEmbed, EmbeddedServer
    from nats_backpressure.demo import html_report as pages
    from nats_backpressure.demo.run import CannotRun, run_demo
    from nats_backpressure.demo.scenario import Scenario
    from nats_backpressure.demo.summary import RunData, summarize
    from nats_backpressure.demo.terminal_output import NoOutput, TerminalOutput

    scene = msgspec.convert({"mode": mode, "overload": overload, "seconds": seconds}, Scenario)
    story = TerminalOutput(Console())

    async def run() -> RunData:
        server = EmbeddedServer()
        await server.start()
        try:
            take = await run_demo(scene, server.url, NoOutput() if as_json else story)
        finally:
            await server.stop()
        return take

    try:
        take = asyncio.run(run())
        summary = summarize(take)
        if report is not None:
            report.write_text(pages.page(take, summary))
    except (CannotRun, CannotEmbed, OSError) as error:
        click.echo(f"demo: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
    else:
        story.sum_up(summary)
    shown = summary.done and (mode == "none" or overload <= 1 or summary.shed)
    sys.exit(0 if shown else 1)
