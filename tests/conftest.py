"""Fixtures for every test: a real server and a client on it; and the rule that CI skips nothing."""

import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
import structlog
from hypothesis import is_hypothesis_test
from nats.aio.client import Client

from tests.support import exploring
from tests.support.order import spread
from tests.support.parts import NOT_WITH_THIS_SERVER
from tests.support.servers import NatsServer

CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")

exploring.register()

StartServer = Callable[..., Awaitable[NatsServer]]


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    """For a test that sets up the logs in its own process: those after it would capture no debug lines."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:], root.level = handlers, level


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """A function that starts one more real server: `await start_server(config="max_payload: 1MB")`."""
    async with AsyncExitStack() as stack:
        count = 0

        async def start(config: str = "", *, port: int | None = None) -> NatsServer:
            nonlocal count
            count += 1
            return await stack.enter_async_context(NatsServer(tmp_path / f"nats-{count}", config=config, port=port))

        yield start


@pytest.fixture
async def server(start_server: StartServer) -> NatsServer:
    """A fresh real nats-server with JetStream and an empty store."""
    return await start_server()


@pytest.fixture
async def nc(server: NatsServer) -> AsyncIterator[Client]:
    """A plain client on `server`: the test's own hands, not the sidecar's."""
    client = await nats.connect(server.url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
    yield client
    await client.close()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """In a worker of xdist pytest-cov starts to trace twice: while it reads its options, and for the worker. `no_cover`
    stops the second only, and everything was traced all the same. So the first is ended before the second begins."""
    plugin = session.config.pluginmanager.get_plugin("_cov")
    if hasattr(session.config, "workerinput") and plugin is not None and plugin.cov_controller is not None:
        plugin.cov_controller.cov.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        spread(items, "tests/process/")
    for item in items:
        if {"server", "start_server"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("real_server")
        # Hypothesis adds its marker later than this.
        if is_hypothesis_test(getattr(item, "obj", None)) or item.nodeid.startswith("tests/simulations/"):
            item.add_marker("no_cover")  # traced they take four times as long, and cover nothing more


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(item.get_closest_marker("hypothesis") for item in session.items):
        exploring.load_everything()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    seed, times = config.getoption("--hypothesis-seed"), exploring.TIMES
    again = f"make test SEED={seed}" if times < 1 else f"make test-slow SEED={seed} TIMES={times:g}"
    terminalreporter.write_line(f"properties: seed {seed}, {times:g} times the examples; the same again: {again}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Under CI a test left out is a test failed, unless the server of this run is too old for it."""
    report = yield
    if CI and report.skipped and not hasattr(report, "wasxfail") and NOT_WITH_THIS_SERVER not in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = f"skipped, and CI skips nothing: {report.longrepr}"
    return report
