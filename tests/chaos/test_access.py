"""Rights are taken away and given back, and passwords change, by a reload of the server."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.installation import BUCKET, EVENTS, Installation, Replica
from tests.conftest import StartServer
from tests.support.sidecar import eventually


def users(password: str = "first", permissions: str = "") -> str:
    return (
        "authorization { users: [ { user: all, password: all }, "
        f"{{ user: bp, password: {password}, permissions: {{ {permissions} }} }} ] }}"
    )


DENIED = {
    "all requests": 'publish: { deny: "$JS.API.>" }',
    "state and events": 'publish: { deny: ["$KV.>", "backpressure.v1.event.>"] }',
    "inbox": 'subscribe: { deny: "_INBOX_sidecar.>" }',
}


@pytest.mark.parametrize("denied", DENIED.values(), ids=DENIED)
async def test_rights_are_taken_away_for_a_while(start_server: StartServer, tmp_path: Path, denied: str) -> None:
    server = await start_server(users())
    async with Installation(tmp_path, [server.port or 0], 0, login="all:all@") as installation:
        for name in ("i0", "i1"):
            await (await installation.add(name, login="bp:first@")).sidecar.observing()
        await installation.overload()
        server.reload(users(permissions=denied))
        await installation.calm(seen=False)
        await asyncio.sleep(3.0)
        server.reload(users())
        await installation.led_to("inactive")
        await installation.overload()
        await installation.calm()
        await installation.check()


async def _observes(replica: Replica) -> bool:
    with suppress(OSError):
        return '"observing":true' in (await replica.sidecar.get("/readyz"))[1]
    return False


FOLLOWING = {
    "create consumers, bucket": f"$JS.API.CONSUMER.CREATE.{BUCKET}.>",
    "pull, bucket": f"$JS.API.CONSUMER.MSG.NEXT.{BUCKET}.*",
    "pull, policies": "$JS.API.CONSUMER.MSG.NEXT.KV_backpressure_policy.*",
    "create consumers, events": f"$JS.API.CONSUMER.CREATE.{EVENTS}.>",
    "pull, events": f"$JS.API.CONSUMER.MSG.NEXT.{EVENTS}.*",
}


@pytest.mark.parametrize("right", FOLLOWING.values(), ids=FOLLOWING)
async def test_without_a_right_to_follow_a_replica_still_answers_what_the_others_store(
    start_server: StartServer, tmp_path: Path, right: str
) -> None:
    server = await start_server(users())
    async with Installation(tmp_path, [server.port or 0], 0, login="all:all@") as installation:
        await (await installation.add("i0", login="all:all@")).sidecar.observing()
        one = await installation.add("i1", login="bp:first@")
        await one.sidecar.observing()
        server.reload(users(permissions=f'publish: {{ deny: "{right}" }}'))
        one.partition()  # it must follow anew, without the right
        await asyncio.sleep(1.0)
        one.heal()
        for _ in range(2):
            await installation.overload()
            await installation.calm()
        await installation.check()
        await one.terminate()
        await one.restart()
        await eventually(lambda: _observes(one), "it to start", 40)
        await installation.overload()
        await installation.calm()
        await installation.check()
        server.reload(users())
        await installation.overload()
        await installation.calm()
        await installation.check()


async def test_the_password_changes(start_server: StartServer, tmp_path: Path) -> None:
    """The file is replaced before the server takes the new one; nothing is restarted."""
    secret = tmp_path / "password"
    secret.write_text("first")
    server = await start_server(users("first"))
    login = {"nats": {"user": "bp", "password_file": str(secret)}}
    async with Installation(tmp_path, [server.port or 0], 0, login="all:all@") as installation:
        for name in ("i0", "i1"):
            await (await installation.add(name, login="", **login)).sidecar.observing()
        for password in ("second", "third"):
            await installation.overload()
            secret.write_text(password)
            server.reload(users(password))
            await installation.calm()
        await installation.check()
