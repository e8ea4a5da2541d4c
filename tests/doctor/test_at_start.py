"""A sidecar that started logs once what the cheap checks find, and goes on whatever happens to them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from structlog.testing import capture_logs

from nats_backpressure.config.settings import Settings, WatchSetting
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.doctor.at_start import AFTER, StartCheck
from nats_backpressure.doctor.facts import OtherInstallation, OwnStream, Server
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.observations import StreamsReading
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from tests.doctor.worlds import OWN, SERVER
from tests.fakes.clock import FakeClock

LOOK = StreamLook("ORDERS", "created", 1, 1, 1, ("orders.>",))
SETTINGS = Settings(
    policies=(PolicyEntry(("odrers.*",)),),
    watch=(WatchSetting("*"), WatchSetting("ORDRES"), WatchSetting("billing-*")),
)


class Source:
    """A server without troubles, beside another installation."""

    async def server(self) -> Server:
        return SERVER

    async def own_streams(self) -> tuple[OwnStream, ...]:
        return OWN

    async def clock_ahead(self, stream: str) -> float | None:
        return 60.0

    async def others(self, looks: Sequence[StreamLook]) -> tuple[OtherInstallation, ...]:
        return (OtherInstallation("team", ("orders.paid",)),)


async def checked(error: Exception | None = None, shown_at: float = 0.0) -> list[dict[str, object]]:
    clock, known = FakeClock(), asyncio.Event()
    registry = SubjectRegistry(SETTINGS, clock, ActivePolicies((), Guard(), False), "w", lambda effects: None)
    stream = FollowedStream(LOOK, 0.0, shown_at=shown_at, under={ConsumerKey("ORDERS", "router"): ("orders.paid",)})
    registry.streams["ORDERS"] = stream

    async def list_streams() -> StreamsReading:
        if error is not None:
            raise error
        return StreamsReading((LOOK,), True, 0.0, 1)

    check = StartCheck(SETTINGS, registry, clock, Source(), list_streams, lambda: None)
    with capture_logs() as lines:
        running = asyncio.ensure_future(check.run(known))
        known.set()
        await clock.run(AFTER)
        await running
    return [dict(line) for line in lines]


async def test_findings_become_log_lines() -> None:
    lines = await checked()
    assert [(line["event"], line["check"]) for line in lines] == [
        ("doctor.warning", "clock"),
        ("doctor.warning", "watch"),
        ("doctor.warning", "policies"),
        ("doctor.warning", "installations"),
    ]
    assert "watch[2].stream: `billing-*`" in str(lines[1]["problem"]), "a stream that is named has its own line"
    assert all(line["log_level"] == "warning" and line["cost"] and line["hint"] for line in lines)


async def test_a_stream_that_was_not_read_yet_gives_no_warning() -> None:
    assert [line["check"] for line in await checked(shown_at=-math.inf)] == ["clock", "watch", "installations"]


async def test_nothing_that_fails_here_ends_the_sidecar() -> None:
    for error in (Unavailable("no answer"), RuntimeError("a bug")):
        (line,) = await checked(error)
        assert (line["event"], line["log_level"], line["error"]) == ("doctor.unavailable", "debug", str(error))
