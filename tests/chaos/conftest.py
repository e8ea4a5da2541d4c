"""The seed of the chaos, and a server with an installation on it.

`make chaos` gives every test the same seed and prints it; `make chaos SEED=...` repeats it. A seed decides what is done
and when; how the processes take their turns it does not.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.installation import Installation
from tests.support.servers import NatsServer

SEED = int(os.environ.get("CHAOS_SEED") or 1)
ROUNDS = int(os.environ.get("CHAOS_ROUNDS") or 2)
"""Overloads of one test."""

LONGEST = 300
"""Seconds of one test, where it does not say another limit."""
SHORT = (
    "test_strikes_at_any_moment[3-all]",
    "test_one_that_releases_late_publishes_no_second_incident[2]",
    "test_what_others_do_to_the_stored_state_is_repaired[3-garbage]",
    "test_what_a_replica_that_died_left_unsent_is_published[monitoring_lost]",
    "test_a_server_that_is_away_for_a_while[3-killed]",
    "test_one_replica_is_cut_off[reader-half_open-2]",
    "test_no_event_that_the_load_did_not_cause[1-]",
    "test_an_upgrade_and_a_rollback_in_incidents",
    "test_workers_behind_gates_while_the_reader_is_killed",
)
"""Those that `make test-slow` runs, too."""
# A test's own client leaves a connection behind where the server stood still.
IGNORED = "ignore::pytest.PytestUnraisableExceptionWarning"

Install = Callable[..., Awaitable[Installation]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.chaos)
            if item.name in SHORT:
                item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.filterwarnings(IGNORED))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LONGEST))


@pytest.fixture
def dice(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test."""
    print(f"chaos: seed {SEED}; repeat: make chaos SEED={SEED} PYTEST_ARGS='-k {request.node.name}'")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def rounds() -> int:
    return ROUNDS


@pytest.fixture
async def install(server: NatsServer, tmp_path: Path) -> AsyncIterator[Install]:
    """A function that starts this many sidecars: `await install(3)`."""
    async with AsyncExitStack() as stack:

        async def start(n: int, **more: Any) -> Installation:
            assert server.port is not None
            return await stack.enter_async_context(Installation(tmp_path, [server.port], n, **more))

        yield start
