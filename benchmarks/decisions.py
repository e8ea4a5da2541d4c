"""Measures decisions per second and the round trip of one, beside a plain nats-py subscriber with a fixed reply.

    python -m benchmarks.decisions [--seconds 2] [--rounds 5] [--only "one subject"] [--asyncio]

The sidecar and the echo are processes of their own on one server, and take turns; the client is a plain socket. The
reply of the echo has the size of a decision. A ratio is that of the sidecar to the echo in the same turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import nats
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, StreamConfig

from benchmarks.figures import Figure, Figures, Size, command, progress
from benchmarks.raw_client import RawClient, Requests
from nats_backpressure.adapters.embedded_server import EmbeddedServer, end_with_parent
from nats_backpressure.demo.processes import free_port

SUBJECTS = 1000
"""Watched subjects, each with one consumer."""
ECHO = "benchmark.echo"
MOVING_PER_SECOND = 500
"""Messages published per second while samples come in."""
TRIPS = 2000
ROOM = 100_000_000
"""A mark for messages in flight that no consumer reaches: every pull is granted."""

Measured = dict[str, Any]
SCALES: dict[Size, tuple[float, int]] = {"full": (1.0, 5), "quick": (0.4, 3), "tiny": (0.05, 1)}
"""Seconds of a round, and rounds."""
PEER = "a nats-py subscriber with a fixed reply"


def subject(n: int) -> str:
    return f"bench.{n % 4}.orders.{n}"


def decide(role: str, n: int, payload: dict[str, Any] | None = None) -> tuple[str, bytes]:
    return f"backpressure.v1.decide.{role}.{subject(n)}", json.dumps(payload).encode() if payload else b""


PAYLOADS: tuple[dict[str, Any], ...] = tuple(
    {"attempt": attempt, "priority": priority} for attempt in (1, 2, 3, 4) for priority in ("normal", "high")
)


def at_random() -> Requests:
    """Each payload for each subject, in an order without any system; the same in every run."""
    requests = [decide("gateway", n, payload) for n in range(SUBJECTS) for payload in PAYLOADS]
    random.Random(1).shuffle(requests)
    return requests


SCENARIOS: dict[str, tuple[Requests, bool]] = {
    "one subject": ([decide("gateway", 0)], False),
    "1,000 subjects, 8 payloads": (at_random(), False),
    "one subject, samples come in": ([decide("gateway", 0)], True),
    "consumer, room": ([decide("consumer", 1, {"max_messages": 1})], False),
    "consumer, no room": ([decide("consumer", 2, {"max_messages": 1000})], False),
}
"""Requests, and whether messages are published meanwhile."""


def measure(
    seconds: float = 2.0,
    rounds: int = 5,
    only: str | None = None,
    *,
    subjects: int = SUBJECTS,
    without_uvloop: bool = False,
) -> Measured:
    """Ratios to the echo: minimum, median and maximum of the rounds; rates and times of the last figure in each."""
    with _server() as url, tempfile.TemporaryDirectory() as hiding:
        asyncio.run(_create_consumers(url, subjects))
        (Path(hiding) / "sitecustomize.py").write_text("import sys; sys.modules['uvloop'] = None\n")
        with _sidecar(url, {"PYTHONPATH": hiding} if without_uvloop else {}):
            with RawClient(url) as client:
                size = len(client.reply(*decide("gateway", 0)))
            with _process("benchmarks.decisions", "--echo", url, str(size)), RawClient(url) as client:
                _wait_for(client, ECHO)
                return {
                    "reply_bytes": size,
                    **{
                        name: _compare(client, url, *scenario, seconds, rounds)
                        for name, scenario in SCENARIOS.items()
                        if only in (None, name)
                    },
                }


def main(size: Size = "full") -> Figures:
    """The ratios of `measure` as figures."""
    measured = measure(*SCALES[size], "one subject", subjects=8) if size == "tiny" else measure(*SCALES[size])
    if size == "full":
        measured["one subject, without uvloop"] = measure(*SCALES[size], "one subject", without_uvloop=True)[
            "one subject"
        ]
    del measured["reply_bytes"]
    progress("compared with " + PEER)
    figures: Figures = {}
    for name, each in measured.items():
        trips, of = each["round_trip_us"], each["round_trip_ratio"]
        gateway = "consumer" not in name
        figures[f"decisions per second, {name}"] = Figure(
            each["ratio"]["median"] * each["echo_per_second"],
            "1/s",
            each["echo_per_second"],
            PEER,
            aim=0.8 if gateway else 0.4,
            more_is_better=True,
            aim_of_ratio=True,
            spread=each["ratio"],
        )
        figures[f"round trip of a decision, {name}, p50"] = Figure(
            trips["p50"],
            "us",
            trips["p50"] / of["p50"]["median"],
            PEER,
            aim=1.15 if name == "one subject" else None,
            aim_of_ratio=True,
            spread=of["p50"],
        )
    return figures


def _compare(client: RawClient, url: str, requests: Requests, moving: bool, seconds: float, rounds: int) -> Measured:
    echo: Requests = [(ECHO, b"")]
    rates, trips = [], []
    with _load(url) if moving else nullcontext():
        for request in requests[:100]:
            client.reply(*request)
        for _ in range(rounds):
            rates.append((client.rate(requests, seconds), client.rate(echo, seconds)))
            trips.append((_percentiles(client, requests), _percentiles(client, echo)))
    return {
        "per_second": round(statistics.median(ours for ours, _ in rates)),
        "echo_per_second": round(statistics.median(theirs for _, theirs in rates)),
        "ratio": _spread([ours / theirs for ours, theirs in rates]),
        "round_trip_us": {p: round(1e6 * statistics.median(ours[p] for ours, _ in trips)) for p in ("p50", "p99")},
        "round_trip_ratio": {p: _spread([ours[p] / theirs[p] for ours, theirs in trips]) for p in ("p50", "p99")},
    }


def _percentiles(client: RawClient, requests: Requests) -> dict[str, float]:
    times = sorted(client.round_trips(requests, TRIPS))
    return {"p50": times[len(times) // 2], "p99": times[len(times) * 99 // 100]}


def _spread(ratios: list[float]) -> dict[str, float]:
    values = {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}
    return {name: round(value, 3) for name, value in values.items()}


@contextmanager
def _server() -> Iterator[str]:
    server = EmbeddedServer()
    asyncio.run(server.start())
    try:
        yield server.url
    finally:
        asyncio.run(server.stop())


@contextmanager
def _sidecar(url: str, environment: dict[str, str]) -> Iterator[int]:
    """The sidecar as a process, once it observes; yields its HTTP port."""
    port = free_port()
    room = [{"subjects": [subject(1)], "inflight": {"warn": ROOM, "critical": ROOM, "overload": ROOM}}]
    settings = {"http": {"host": "127.0.0.1", "port": port}, "log": {"level": "warning"}, "policies": room}
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "config.yaml"
        config.write_text(json.dumps(settings))
        arguments = ("run", "--config", str(config))
        with _process(
            "nats_backpressure",
            *arguments,
            environment={"NATS_URL": url, **environment},
        ) as process:
            for _ in range(600):
                assert process.poll() is None, "the sidecar has ended"
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                    if json.load(answer)["observing"]:
                        break
                time.sleep(0.1)
            with RawClient(url) as client:
                _wait_for(client, decide("gateway", 0)[0])
            yield port


@contextmanager
def _process(
    module: str, *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=os.environ | (environment or {}),
        preexec_fn=end_with_parent,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(client: RawClient, subject: str) -> None:
    for _ in range(200):
        with suppress(ValueError):
            client.reply(subject)
            return
        time.sleep(0.1)
    raise TimeoutError(f"nobody answers on {subject}")


async def _create_consumers(url: str, n: int) -> None:
    """Four streams with a consumer for each subject; the one of `subject(1)` has no limit in flight, and that of
    `subject(2)` has as many in flight as it may have."""
    async with await nats.connect(url) as nc:
        js = nc.jetstream()
        for stream in range(4):
            await js.add_stream(StreamConfig(name=f"S{stream}", subjects=[f"bench.{stream}.>"]))
        for i in range(n):
            limit = -1 if i == 1 else 1000
            config = ConsumerConfig(durable_name=f"c{i}", filter_subject=subject(i), max_ack_pending=limit)
            await js.add_consumer(f"S{i % 4}", config)
        for _ in range(600):
            await js.publish(subject(2), b"work")
        await (await js.pull_subscribe_bind("c2", "S2")).fetch(600)


@contextmanager
def _load(url: str) -> Iterator[None]:
    """Messages for the first subject, which nobody pulls: each reading of it differs from the last."""
    stop = threading.Event()

    async def publish() -> None:
        async with await nats.connect(url) as nc:
            while not stop.is_set():
                await nc.publish(subject(0), b"work")
                await asyncio.sleep(1 / MOVING_PER_SECOND)

    thread = threading.Thread(target=lambda: asyncio.run(publish()))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


async def _echo(url: str, size: int) -> None:
    """The smallest subscriber: a fixed reply to every message."""
    nc = await nats.connect(url)
    body = b"x" * size

    async def respond(message: Msg) -> None:
        await nc.publish(message.reply, body)

    await nc.subscribe(ECHO, cb=respond)
    await asyncio.Event().wait()


def _show(figures: Measured) -> None:
    print(f"replies of {figures.pop('reply_bytes')} bytes")
    print("| scenario | per second | of the echo (min, median, max) | p50 us | of the echo | p99 us | of the echo |")
    print("|---|---|---|---|---|---|---|")
    for name, f in figures.items():
        ratio, trip, of = f["ratio"], f["round_trip_us"], f["round_trip_ratio"]
        print(
            f"| {name} | {f['per_second']:,} of {f['echo_per_second']:,} | {' '.join(map(str, ratio.values()))} |"
            f" {trip['p50']} | {' '.join(map(str, of['p50'].values()))} |"
            f" {trip['p99']} | {' '.join(map(str, of['p99'].values()))} |"
        )


if __name__ == "__main__" and "--json" in sys.argv:
    command(main)
elif __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=list(SCENARIOS))
    parser.add_argument("--asyncio", action="store_true", help="run the sidecar without uvloop")
    parser.add_argument("--echo", nargs=2, metavar=("URL", "BYTES"), help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.echo:
        asyncio.run(_echo(wanted.echo[0], int(wanted.echo[1])))
    else:
        _show(measure(wanted.seconds, wanted.rounds, wanted.only, without_uvloop=wanted.asyncio))
