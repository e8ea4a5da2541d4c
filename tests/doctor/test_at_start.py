"""A sidecar that started makes each check once, logs what is wrong, and goes on whatever happens to the checks."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from nats_backpressure.config.settings import Settings, WatchSetting
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.doctor.at_start import AFTER, AT_LAST, StartCheck
from nats_backpressure.doctor.examination import CHECKS
from nats_backpressure.doctor.facts import Account, Failure, OtherInstallation, OwnStream, Server
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import FollowedStream, WholeList
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.doctor.worlds import NOW, OWN, SERVER
from tests.fakes.clock import FakeClock

LOOK = StreamLook("ORDERS", "created", 1, 1, 1, ("orders.>",))
SETTINGS = Settings(
    policies=(PolicyEntry(("odrers.*",)),),
    watch=(WatchSetting("*"), WatchSetting("ORDRES"), WatchSetting("billing-*")),
)


FULL = Account(storage=90, max_storage=100)


class Source:
    """A server with a full account, beside another installation; first it is as `failing` says."""

    def __init__(self, failing: str = "") -> None:
        self.failing = failing

    async def server(self) -> Server:
        if self.failing == "server":
            raise Unavailable("not connected to NATS")
        return SERVER

    async def own_streams(self) -> tuple[OwnStream, ...]:
        return (OWN[0], replace(OWN[1], full="it holds 7 of 7 messages (max_msgs)"), OWN[2])

    async def account(self) -> Account:
        if self.failing == "account":
            raise Unavailable("no right")
        return FULL

    async def clock_ahead(self, stream: str) -> float | None:
        return 60.0

    async def others(self, looks: Sequence[StreamLook]) -> tuple[OtherInstallation, ...]:
        return (OtherInstallation("team", ("orders.paid",)),)

    def failure(self, error: Exception) -> Failure:
        return Failure(str(error), "wait")


class World:
    """A sidecar that starts; `lines` are what it logs about `doctor`."""

    def __init__(
        self, failing: str = "", error: Exception | None = None, is_whole: bool = True, missing: tuple[str, ...] = ()
    ) -> None:
        self.clock, self.known, self.source, self.error = FakeClock(), asyncio.Event(), Source(failing), error
        registry = SubjectRegistry(SETTINGS, self.clock, ActivePolicies((), Guard(), False), "w", lambda effects: None)
        under = {ConsumerKey("ORDERS", "router"): ("orders.paid",)}
        whole = WholeList(LOOK, frozenset({"router"})) if is_whole else None
        registry.streams["ORDERS"] = FollowedStream(LOOK, 0.0, shown_at=0.0, whole=whole, under=under)
        self.registry, self.missing = registry, missing
        expiry = NOW - 60
        self.check = StartCheck(SETTINGS, registry, self.clock, self.source, self.list_streams, lambda: expiry)
        self.lines: list[dict[str, Any]] = []

    async def list_streams(self) -> StreamsReading:
        if self.error is not None:
            raise self.error
        return StreamsReading((LOOK,), not self.missing, 0.0, 1, missing=self.missing)

    async def __aenter__(self) -> Self:
        self.running = asyncio.ensure_future(self.check.run(self.known))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])

    async def pass_time(self, seconds: float) -> list[str]:
        """The checks that a line was logged about meanwhile."""
        with capture_logs() as lines:
            await self.clock.run(seconds)
            await asyncio.wait([self.running], timeout=0.2)  # what it examines, it examines in a thread
        self.lines = [dict(line) for line in lines]
        return [str(line.get("check", line["event"])) for line in lines]

    async def know(self) -> list[str]:
        self.known.set()
        return await self.pass_time(AFTER)


AT_ONCE = ["jwt"]
LATER = ["account", "clock", "state", "watch", "policies", "installations"]


async def test_findings_become_log_lines_once() -> None:
    async with World() as world:
        assert await world.know() == AT_ONCE + LATER
        lines = {line["check"]: line for line in world.lines}
        assert {name for name, line in lines.items() if line["event"] == "doctor.error"} == {"jwt", "account", "state"}
        assert "watch[2].stream: `billing-*`" in lines["watch"]["problem"], "a named stream has a line of its own"
        assert all(line["log_level"] == "warning" and line["cost"] and line["hint"] for line in lines.values())
        assert world.running.done(), "each is made once"


@pytest.mark.parametrize(
    ("world", "first", "then"),
    [
        pytest.param({"failing": "server"}, AT_ONCE, LATER, id="no connection"),
        pytest.param({"error": Unavailable("no JetStream")}, AT_ONCE, LATER, id="no JetStream"),
        pytest.param({}, AT_ONCE + LATER, [], id="states that cannot be loaded"),
    ],
)
async def test_what_is_possible_is_checked_at_last_though_nothing_is_known_and_the_rest_when_it_is(
    world: dict[str, Any], first: list[str], then: list[str]
) -> None:
    async with World(**world) as starting:
        assert await starting.pass_time(AT_LAST - 0.1) == []
        assert await starting.pass_time(0.2) == first
        assert await starting.pass_time(3600) == []
        starting.source.failing, starting.error = "", None
        assert await starting.know() == then
        assert starting.running.done()


@pytest.mark.parametrize("followed", [True, False])
async def test_a_stream_that_was_not_read_whole_yet_gives_no_warning(followed: bool) -> None:
    async with World(is_whole=False) as world:
        if not followed:
            del world.registry.streams["ORDERS"]
        assert "policies" not in await world.know()
        assert all("router" not in str(line) for line in world.lines)


async def test_streams_that_the_list_lacks_give_no_warning() -> None:
    async with World(missing=("BILLING",)) as world:
        assert {"watch", "policies"}.isdisjoint(await world.know())


async def test_a_right_to_read_the_account_that_is_missing_is_no_finding() -> None:
    async with World("account") as world:
        assert "account" not in await world.know()


async def test_nothing_that_fails_here_ends_the_sidecar() -> None:
    async with World(error=RuntimeError("a bug")) as world:
        await world.know()
        ((event, level, text),) = [(line["event"], line["log_level"], line["error"]) for line in world.lines]
        assert (event, level, text) == ("doctor.unavailable", "debug", "a bug")


def test_what_a_start_leaves_out_has_a_log_event_or_is_never_logged() -> None:
    events = set(re.findall(r"`([a-z_]+\.?[a-z_]+)`", (Path(__file__).parents[2] / "docs/logs.md").read_text()))
    left_out = {check.name: check.not_at_start for check in CHECKS if check.not_at_start}
    without_event = {"sampling", "heartbeat"}
    with_event = {"connection", "environment", "rights", "jetstream", "resources", "requests"}
    assert left_out.keys() == with_event | without_event
    for name, why in left_out.items():
        assert name in without_event or set(re.findall(r"`(.+?)`", why)) <= events, (name, why)
