"""The gateway of docs/client.md, under a real uvicorn: it starts, serves and stops whatever happens to NATS."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.examples.conftest import EXAMPLES
from tests.examples.program import Program
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import STARTS_WITHIN, eventually

PAGE = EXAMPLES.parent / "client.md"
EXIT_CODES = {signal.SIGINT: 0, signal.SIGTERM: -signal.SIGTERM}
"""Those of uvicorn, which ends itself by the SIGTERM that it got."""


@asynccontextmanager
async def serving(url: str, where: Path) -> AsyncIterator[tuple[Program, httpx.AsyncClient]]:
    """The page's own code, as a file."""
    code = re.search(r"^## A gateway\n.*?```python\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    (where / "page_gateway.py").write_text(code[1])
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "page_gateway:app", "--app-dir", where, "--port", str(port)]
    async with (
        Program(where, command, {**os.environ, "NATS_URL": url}) as program,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=STARTS_WITHIN) as http,
    ):
        await eventually(lambda: serves(http), "the gateway's port", STARTS_WITHIN)
        yield program, http


async def serves(http: httpx.AsyncClient) -> bool:
    """Whether it answers; the answer is its own router's."""
    try:
        return (await http.get("/v1/decide")).status_code == 405
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("how", EXIT_CODES)
@pytest.mark.parametrize("nats", ["away", "killed"])
async def test_it_starts_serves_and_stops(nats: str, how: signal.Signals, server: NatsServer, tmp_path: Path) -> None:
    if nats == "away":
        await server.kill()
    async with serving(server.url, tmp_path) as (program, http):
        if nats == "killed":
            await server.kill()
        assert await serves(http)
        assert (await http.post("/v1/decide")).status_code == 500, "admitted; the page's own publish fails"
        await eventually(lambda: serves(http), "the next answer")  # uvicorn ends the connection after an exception
        logged = len(program.output)
        code = await program.end(how)
    assert code == EXIT_CODES[how], program.output[-2000:]
    assert "Application shutdown complete" in program.output
    assert program.own_tracebacks("page_gateway", logged) == [], program.output[-4000:]
