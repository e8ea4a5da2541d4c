"""docs/examples/python: each gateway refuses while a real sidecar reports an overload, and fails open."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import httpx
import pytest
from nats.aio.client import Client

from tests.examples.conftest import EXAMPLES
from tests.examples.program import Program
from tests.support.router import drain, publish, take
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import Sidecar, eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]

IN_A_ROW = 20
"""Answers that are the same before a gateway counts as open or closed: an opening one admits a share."""
HTTP = ("flask_gateway.py", "django_gateway.py", "aiohttp_gateway.py")
GRPC = ("grpc_gateway.py", "grpc_aio_gateway.py")
Ask = Callable[[], Awaitable[tuple[bool, int]]]
"""Whether one request is admitted, and the seconds after which to try again."""


async def over_http(http: httpx.AsyncClient) -> tuple[bool, int]:
    reply = await http.post("/v1/decide", content=b"decide")
    if reply.status_code == 202:
        return True, 0
    assert (reply.status_code, reply.json()["code"]) == (503, "service_overloaded")
    assert reply.headers["content-type"].startswith("application/problem+json")
    assert reply.headers["cache-control"] == "no-store"
    assert (await http.get("/other")).status_code == 404, "no route with a subject"
    return False, int(reply.headers["retry-after"])


async def over_grpc(channel: grpc.aio.Channel) -> tuple[bool, int]:
    call = channel.unary_unary("/router.Router/Decide")(b"decide", timeout=20)
    code = await call.code()
    if code == grpc.StatusCode.OK:
        assert await call == b"accepted"
        return True, 0
    if code == grpc.StatusCode.UNAVAILABLE:
        raise httpx.ConnectError("it does not listen yet")
    assert (code, "try again" in await call.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    return False, int(dict(await call.trailing_metadata())["grpc-retry-pushback-ms"]) // 1000


@asynccontextmanager
async def running(example: str, url: str, where: Path) -> AsyncIterator[tuple[int, Ask]]:
    port = free_port()
    command = [sys.executable, EXAMPLES / "python" / example, str(port)]
    async with (
        Program(where, command, {**os.environ, "NATS_URL": url}),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        ask = partial(over_http, http) if example in HTTP else partial(over_grpc, channel)

        async def serves() -> bool:
            try:
                await ask()
            except httpx.TransportError:
                return False
            return True

        await eventually(serves, "the gateway's port", 60)
        yield port, ask


async def answers(ask: Ask, admitted: bool) -> set[int]:
    """Wait until so many requests in a row are admitted, or are not. Returns their seconds after which to try again."""
    seconds: set[int] = set()

    async def look() -> bool:
        for _ in range(IN_A_ROW):
            one, retry_after = await ask()
            seconds.add(retry_after)
            if one is not admitted:
                seconds.clear()
                return False
        return True

    await eventually(look, f"requests admitted: {admitted}", 60)
    return seconds


@pytest.mark.parametrize("example", HTTP + GRPC)
async def test_an_overload_is_refused_and_after_it_or_without_nats_requests_are_admitted(
    example: str, nc: Client, server: NatsServer, sidecar: Sidecar, tmp_path: Path
) -> None:
    async with running(example, server.url, tmp_path) as (port, ask):
        await answers(ask, True)
        await publish(nc, 2100)
        held = await take(nc, 600)
        seconds = await answers(ask, False)
        assert min(seconds) >= 30 and max(seconds) <= 45 and len(seconds) > 1
        await drain(nc, held)
        await answers(ask, True)
        await publish(nc, 2100)
        held = await take(nc, 600)
        await answers(ask, False)
        if example in GRPC:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.stream_stream("/router.Router/Decide")(timeout=20)
                assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, "before its request is read"
        await server.kill()
        await answers(ask, True)


@pytest.mark.parametrize("example", HTTP + GRPC)
async def test_it_starts_and_serves_while_nats_is_away(example: str, server: NatsServer, tmp_path: Path) -> None:
    await server.stop()
    async with running(example, server.url, tmp_path) as (_, ask):
        await answers(ask, True)


def test_the_examples_are_all_run_here() -> None:
    gateways = {path.name for path in (EXAMPLES / "python").glob("*_gateway.py")}
    assert gateways == set(HTTP + GRPC)
