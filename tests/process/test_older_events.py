"""The events stream alone is set back to an older copy: what it lacks of the present is published again. One that was
deleted and made again is no older copy."""

from __future__ import annotations

import json
import shutil
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from tests.support.router import publish
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually

FAR = {"warn": 10**6, "critical": 2 * 10**6, "overload": 5 * 10**6}
POLICY = {
    "subjects": [">"],
    "drain_seconds": FAR,
    "stall_seconds": 80_000,
    "alert_for_seconds": 3600,
    "recovery_hold_seconds": 0.5,
}
"""Under which only the status has events, by what waits."""


EVENTS, API = "BACKPRESSURE_EVENTS", "$JS.API.STREAM"


class OfFiles:
    """A copy of what the events stream has on disk; the server is down meanwhile."""

    def __init__(self, nc: Client, server: NatsServer) -> None:
        (self._stream,) = (server.directory / "store").rglob(EVENTS)
        self._server, self._copy = server, server.directory / "copy"

    async def take(self) -> None:
        await self._server.stop()
        shutil.copytree(self._stream, self._copy)
        await self._server.start()

    async def put_back(self) -> None:
        await self._server.stop()
        shutil.rmtree(self._stream)
        shutil.copytree(self._copy, self._stream)
        await self._server.start()


class OfTheApi:
    """As `nats stream backup` and `restore` make one. The server says of the stream that it was created then."""

    def __init__(self, nc: Client, server: NatsServer) -> None:
        self._nc, self._pieces = nc, list[bytes]()
        self._taken: dict[str, Any] = {}

    async def _ask(self, subject: str, body: Any = b"") -> dict[str, Any]:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer: dict[str, Any] = json.loads((await self._nc.request(subject, payload, timeout=10)).data or b"{}")
        assert "error" not in answer, answer
        return answer

    async def take(self) -> None:
        pieces = await self._nc.subscribe(inbox := self._nc.new_inbox())
        asked = {"deliver_subject": inbox, "no_consumers": True}
        self._taken = await self._ask(f"{API}.SNAPSHOT.{EVENTS}", asked)
        while (piece := await pieces.next_msg(timeout=10)).data:
            self._pieces.append(piece.data)
            if piece.reply:  # it sends on only so much that is not acknowledged
                await self._nc.publish(piece.reply, b"")
        await pieces.unsubscribe()

    async def put_back(self) -> None:
        async def restored() -> bool:
            await self._ask(f"{API}.DELETE.{EVENTS}")
            asked = {"config": self._taken["config"], "state": self._taken["state"]}
            try:
                place = (await self._ask(f"{API}.RESTORE.{EVENTS}", asked))["deliver_subject"]
                for piece in [*self._pieces, b""]:
                    await self._ask(place, piece)
            except AssertionError as error:
                if "already in use" not in str(error):
                    raise
                return False  # a sidecar was faster, and made it again
            return True

        await eventually(restored, "the copy to be put back")


async def last_says(wire: Wire, status: str) -> list[dict[str, Any]]:
    """Wait until the newest event has this status, as the state does; returns all events."""
    events: list[dict[str, Any]] = []

    async def look() -> bool:
        events[:] = await wire.stored()
        return bool(events) and events[-1]["to"] == (await wire.state())["status"] == status

    await eventually(look, f"a last event of {status}", 60)
    return events


async def followed(wire: Wire, n: int) -> None:
    """Wait until the replicas that answer have received so many events: only then they can miss some."""

    async def look() -> bool:
        answers = [await wire.ask(f"get.metrics.{SUBJECT}", {"windows": ["24h"]}) for _ in range(8)]
        consumers = await wire.nc.jetstream().consumers_info(EVENTS)  # who published counts before it receives
        delivered = bool(consumers) and all(each.num_pending == 0 for each in consumers)
        return delivered and all(sum(each["windows"]["24h"]["events"].values()) == n for each in answers)

    await eventually(look, f"{n} events in the windows of all")


@pytest.mark.parametrize("copies", [OfFiles, OfTheApi])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("now", ["inactive", "warning"])
async def test_a_last_event_that_is_not_the_status_is_followed_by_one_that_is(
    nc: Client, server: NatsServer, router: None, tmp_path: Path, n: int, now: str, copies: type[OfFiles | OfTheApi]
) -> None:
    wire = Wire(nc)
    async with AsyncExitStack() as stack:
        sidecars = [Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [POLICY]}) for _ in range(n)]
        for each in sidecars:
            await stack.enter_async_context(each)
            await each.observing()
        await wire.status(status="inactive")
        await publish(nc, 1500)
        before = await last_says(wire, "warning")
        if now == "warning":
            await nc.jetstream().purge_stream("ROUTER")
            before = await last_says(wire, "inactive")
        copy = copies(nc, server)
        await copy.take()
        if now == "warning":
            await publish(nc, 1500)
        else:
            await nc.jetstream().purge_stream("ROUTER")
        later = await last_says(wire, now)
        await followed(wire, len(later))
        await copy.put_back()
        after = await last_says(wire, now)
        assert after[: len(before)] == before and len(after) == len(before) + 1
        new = after[-1]
        assert (new["from"], new["seq"]) == (before[-1]["to"], before[-1]["seq"] + 1)
        assert new["id"] not in {event["id"] for event in later}
        # One that looks after another has published again finds as many events as before.
        assert any('"events.went_back"' in each.log for each in sidecars)
        assert (await wire.status())["status"] == now


@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_that_is_made_again_and_has_an_event_that_waited_is_no_older_copy(
    nc: Client, server: NatsServer, router: None, tmp_path: Path, n: int
) -> None:
    wire, js = Wire(nc), nc.jetstream()
    async with AsyncExitStack() as stack:
        sidecars = [Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [POLICY]}) for _ in range(n)]
        for each in sidecars:
            await stack.enter_async_context(each)
            await each.observing()
        await wire.status(status="inactive")
        await publish(nc, 1500)
        before = await last_says(wire, "warning")
        await followed(wire, len(before))
        config = (await js.stream_info(EVENTS)).config
        await js.purge_stream("ROUTER")
        await js.delete_stream(EVENTS)
        await js.add_stream(config)
        await js.publish("backpressure.v1.event.foreign.x", b"{}")  # those that follow it never see it empty
        await wire.status(status="inactive")

        async def compared() -> bool:
            return all('"events.compared"' in each.log for each in sidecars)

        await eventually(compared, "the states to be compared with it", 30)
        await js.delete_msg(EVENTS, 1)
        (after,) = await last_says(wire, "inactive")
        assert after["seq"] == before[-1]["seq"] + 1
        for each in sidecars:
            lines = [json.loads(line) for line in each.log.splitlines() if line.startswith("{")]
            assert [line["contradicted"] for line in lines if line["event"] == "events.compared"] == [0]
            assert "events.went_back" not in {line["event"] for line in lines}
