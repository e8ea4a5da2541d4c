"""Runs the same overload with each kind of backpressure and without: useful work at 1, 3 and 10 times the capacity.

    python -m benchmarks.overload [--seconds 20] [--overload 1 3 10] [--out build/overload]

Each run has its own NATS server; gateway, router, sidecar and load generator are separate processes on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import msgspec

from benchmarks.plot import svg_chart
from nats_backpressure.adapters.embedded_server import EmbeddedServer
from nats_backpressure.demo.html_report import html_page
from nats_backpressure.demo.run import run_demo
from nats_backpressure.demo.scenario import Mode, Scenario
from nats_backpressure.demo.summary import RunData, Summary, summarize
from nats_backpressure.demo.terminal_output import NoOutput

SYSTEMS: dict[str, tuple[Mode, bool]] = {
    "none": ("none", False),
    "NAK habit": ("none", True),
    "polling": ("polling", False),
    "binary": ("binary", False),
    "adaptive": ("adaptive", False),
}
"""Name -> the mode of the gateway, and whether the router NAKs messages for which it has no free worker."""
MAX_DELIVER = 5
"""Deliveries after which the server gives a message up; only the NAK habit reaches it."""


async def run_once(scenario: Scenario) -> RunData:
    server = EmbeddedServer()
    await server.start()
    try:
        return await run_demo(scenario, server.url, NoOutput())
    finally:
        await server.stop()


def run_and_store(scenario: Scenario, out: Path | None, name: str) -> Summary:
    data = asyncio.run(run_once(scenario))
    summary = summarize(data)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        stem = f"{name.replace(' ', '-')}-{scenario.overload:g}x"
        (out / f"{stem}.html").write_text(html_page(data, summary))
        (out / f"{stem}.json").write_bytes(msgspec.json.encode(summary))
    return summary


def row(name: str, summary: Summary) -> str:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return (
        f"| {summary.overload:g}x | {name} | {summary.goodput:.2f} | {seconds(summary.p50_seconds)} |"
        f" {seconds(summary.p99_seconds)} | {summary.shed:.2f} | {summary.status_changes_per_minute:.1f} |"
        f" {summary.largest_backlog} | {summary.redelivered} | {summary.lost} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--overload", type=float, nargs="*", default=[1.0, 3.0, 10.0])
    parser.add_argument("--system", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    print("| load | system | goodput | p50 s | p99 s | shed | changes/min | backlog | delivered again | lost |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    results: dict[float, dict[str, Summary]] = {}
    for overload in wanted.overload:
        for name in wanted.system:
            mode, nak = SYSTEMS[name]
            scenario = Scenario(mode=mode, overload=overload, seconds=wanted.seconds, nak=nak, max_deliver=MAX_DELIVER)
            results.setdefault(overload, {})[name] = summary = run_and_store(scenario, wanted.out, name)
            print(row(name, summary), flush=True)
    if wanted.out is not None:
        (wanted.out / "overload.svg").write_text(svg_chart(results))


if __name__ == "__main__":
    main()
