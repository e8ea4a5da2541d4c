"""Compiles the examples in C and Erlang, with Debian's packages, and starts a sidecar for them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from tests.support.debian import unpacked
from tests.support.parts import need_command
from tests.support.servers import NatsServer
from tests.support.sidecar import QUICK, SUBJECT, Sidecar

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
STRICT = ("-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror")
MARK = 20
"""Messages in flight."""
LONGEST_INTERVAL_MS = 200
"""Between two readings; a gateway uses an answer for no longer."""
POLICY = {
    "subjects": [">"],
    "hold_seconds": 1,
    "inflight": {"warn": MARK, "critical": MARK, "overload": MARK},
    "latency_p95": {"overload": 1_000_000},
}


@pytest.fixture(scope="session")
def c_compiler() -> list[str]:
    """The compiler, with the headers and libraries of the NATS client and of cJSON."""
    root = unpacked("libnats-dev", "libcjson-dev")
    libraries = {path.parent for path in (root / "usr" / "lib").rglob("lib*.so*")}
    # The older kind of rpath also counts for what the libraries need themselves.
    links = [argument for path in libraries for argument in (f"-L{path}", f"-Wl,--disable-new-dtags,-rpath,{path}")]
    return [need_command("cc"), *STRICT, f"-I{root / 'usr' / 'include'}", *links]


@pytest.fixture(scope="session")
def gateway_binary(c_compiler: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    binary = tmp_path_factory.mktemp("c") / "gateway"
    sources = [str(EXAMPLES / "c" / name) for name in ("gateway.c", "backpressure.c", "state.c")]
    libraries = ["-lnats", "-lcjson", "-lm", "-pthread"]
    subprocess.run([*c_compiler, "-o", str(binary), *sources, *libraries], check=True, timeout=100)
    return binary


@pytest.fixture(scope="session")
def erlang() -> tuple[str, dict[str, str]]:
    """The program that starts Erlang, and its environment: Debian's own script names the place it is installed to."""
    root = unpacked("erlang-base") / "usr" / "lib" / "erlang"
    [programs] = root.glob("erts-*/bin")
    places = {
        "ROOTDIR": str(root),
        "BINDIR": str(programs),
        "EMU": "beam",
        "PROGNAME": "erl",
        "ERL_CRASH_DUMP_SECONDS": "0",
    }
    path = f"{programs}:{os.environ['PATH']}"
    return str(programs / "erlexec"), {**os.environ, **places, "PATH": path}


@pytest.fixture(scope="session")
def compiled_worker(erlang: tuple[str, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory with the compiled modules of the worker."""
    out, (program, environment) = tmp_path_factory.mktemp("erlang"), erlang
    sources = ", ".join(f'"{EXAMPLES / "erlang" / name}"' for name in ("nats", "worker"))
    options = f'[{{outdir, "{out}"}}, warnings_as_errors, report]'
    compiling = f"[{{ok, _}} = compile:file(F, {options}) || F <- [{sources}]], halt()."
    subprocess.run([program, "-noshell", "-eval", compiling], env=environment, check=True, timeout=100)
    return out


@pytest.fixture
async def stream(nc: Client) -> None:
    """The router's stream and consumer."""
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    consumer = ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000, ack_wait=60)
    await nc.jetstream().add_consumer("ROUTER", consumer)


@pytest.fixture
async def sidecar(tmp_path: Path, server: NatsServer, stream: None) -> AsyncIterator[Sidecar]:
    observe = QUICK["observe"] | {"max_interval_ms": LONGEST_INTERVAL_MS}
    settings = {"observe": observe, "publish": {"heartbeat_seconds": 0.2}, "policies": [POLICY]}
    async with Sidecar(tmp_path, server.url, settings) as process:
        yield await process.observing()
