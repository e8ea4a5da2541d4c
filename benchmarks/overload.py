"""The same load against four ways of living with it: how much useful work is left at 1, 3 and 10 times the capacity.

    python -m benchmarks.overload [--seconds 20] [--overload 1 3 10] [--out build/overload]

Each run has its own NATS server; gateway, router, sidecar and callers are processes of their own on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import msgspec

from benchmarks.plot import drawn
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
"""Name -> what the gateway does, and whether the router workers back what it has no hand for."""
MAX_DELIVER = 5
"""Deliveries after which the server gives a message up; only handing back ever gets there."""


async def played(scenario: Scenario) -> RunData:
    server = EmbeddedServer()
    await server.start()
    try:
        return await run_demo(scenario, server.url, NoOutput())
    finally:
        await server.stop()


def measured(scenario: Scenario, out: Path | None, name: str) -> Summary:
    data = asyncio.run(played(scenario))
    summary = summarize(data)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        stem = f"{name.replace(' ', '-')}-{scenario.overload:g}x"
        (out / f"{stem}.html").write_text(html_page(data, summary))
        (out / f"{stem}.json").write_bytes(msgspec.json.encode(summary))
    return summary


def row(name: str, found: Summary) -> str:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return (
        f"| {found.overload:g}x | {name} | {found.goodput:.2f} | {seconds(found.p50_seconds)} |"
        f" {seconds(found.p99_seconds)} | {found.shed:.2f} | {found.status_changes_per_minute:.1f} |"
        f" {found.largest_backlog} | {found.redelivered} | {found.lost} |"
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
            results.setdefault(overload, {})[name] = found = measured(scenario, wanted.out, name)
            print(row(name, found), flush=True)
    if wanted.out is not None:
        (wanted.out / "overload.svg").write_text(drawn(results))


if __name__ == "__main__":
    main()
