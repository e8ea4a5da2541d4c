"""No request, however large, keeps memory: thousands of different ones at every endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError

from nats_backpressure.protocol.endpoints import ENDPOINTS
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import UNHURRIED, Sidecar

EACH = 250
"""Requests to each endpoint, under watched subjects and again under others."""
MAY_GROW = 40 * 1024
"""KiB: the two caches of answers have 4 MiB each; 250 requests that are kept take some 56 MiB."""


def greedy(n: int) -> bytes:
    """A payload of some 62 KiB, unlike all others, with a bit of everything that an endpoint may look at."""
    document = {
        "subjects": [f"{n}.{k}." + "\N{GRINNING FACE}" * 990 for k in range(8)],
        "consumers": [f"{n}-{k}-" + "x" * 200 for k in range(20)],
        "alerts": [{"name": f"a{n}-{k}" + "y" * 40, "when": {"pending_above": n + k}} for k in range(64)],
        "mode": "observe",
        "stream": f"{n}" + "s" * 200,
        "consumer": f"{n}" + "c" * 200,
        "max_messages": 1 + n % 1000,
        f"unknown-{n}": "z" * 10_000,
    }
    return json.dumps(document, ensure_ascii=False).encode()


def requests(n: int) -> Iterator[tuple[str, bytes]]:
    payload = greedy(n)
    for endpoint in ENDPOINTS:
        for tail in ("orders", "elsewhere"):
            subject = endpoint.subject.replace(">", f"{tail}.{n}." + "q" * 900)
            yield f"backpressure.v1.{subject}", payload


def resident(pid: int) -> int:
    """KiB of memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc")
async def test_no_endpoint_remembers_what_it_was_asked(tmp_path: Path, server: NatsServer, nc: Client) -> None:
    await nc.jetstream().add_stream(name="ORDERS", subjects=["orders.>"])
    await nc.jetstream().add_consumer("ORDERS", CONSUMER, filter_subject="orders.>")
    async with Sidecar(tmp_path, server.url, UNHURRIED | {"log": {"level": "warning"}}) as sidecar:
        await sidecar.observing()
        assert sidecar.process is not None
        before = resident(sidecar.process.pid)
        for n in range(EACH):
            with suppress(NatsTimeoutError):  # reading the events takes turns
                await asyncio.gather(*(nc.request(subject, data, timeout=10) for subject, data in requests(n)))
        grown = resident(sidecar.process.pid) - before
        assert grown < MAY_GROW, f"{grown:,} KiB more than before"
        assert [line for line in sidecar.log.splitlines() if "doctor.warning" not in line] == []  # an old server
