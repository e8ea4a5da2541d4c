"""The state bucket is changed behind the sidecars, and a replica dies between its write and its event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.chaos.conftest import Install
from tests.chaos.installation import BUCKET, Installation
from tests.conftest import StartServer
from tests.support.sidecar import SUBJECT, eventually

Change = Callable[[Installation, bytes], Awaitable[object]]
KEY = f"$KV.backpressure_state.{SUBJECT}"


async def delete_key(installation: Installation, before: bytes) -> None:
    await installation.nc.jetstream().publish(KEY, b"", headers={"KV-Operation": "DEL"})


async def garbage(installation: Installation, before: bytes) -> None:
    await installation.nc.jetstream().publish(KEY, b"garbage")


async def valid_value_of_before(installation: Installation, before: bytes) -> None:
    """A record as we wrote it in calm times: false calm."""
    await installation.nc.jetstream().publish(KEY, before)


async def purge(installation: Installation, before: bytes) -> None:
    await installation.nc.jetstream().purge_stream(BUCKET)


async def delete_bucket(installation: Installation, before: bytes) -> None:
    await installation.nc.jetstream().delete_stream(BUCKET)


CHANGES: tuple[Change, ...] = (delete_key, garbage, valid_value_of_before, purge, delete_bucket)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("n", [1, 3])
async def test_what_others_do_to_the_stored_state_is_repaired(install: Install, change: Change, n: int) -> None:
    """A4: at once, and without an event."""
    installation = await install(n)
    await installation.overload()
    await installation.calm()
    await installation.agree()
    before = (await installation.nc.jetstream().get_last_msg(BUCKET, KEY)).data
    assert before
    await installation.overload()
    events = list(await installation.events())
    await change(installation, before)
    await installation.agree()
    assert await installation.events() == events
    await installation.calm()
    await installation.check()


MUTE = """authorization { users: [
  { user: all, password: all }
  { user: mute, password: mute, permissions: { publish: { deny: "backpressure.v1.event.>" } } }
] }"""


@pytest.mark.parametrize("what", ["rise", "monitoring_lost"])
async def test_what_a_replica_that_died_left_unsent_is_published(
    start_server: StartServer, tmp_path: object, what: str
) -> None:
    """A5: the writer may not publish events, so that the event is certainly left; with and without members."""
    server = await start_server(MUTE)
    async with Installation(tmp_path, [server.port or 0], 0, login="all:all@") as installation:  # type: ignore[arg-type]
        mute = await installation.add("i0", login="mute:mute@")
        other = await installation.add("i1")
        for replica in (mute, other):
            await replica.sidecar.observing()
        other.sidecar.pause()
        if what == "rise":
            await installation.overload(seen=False)
        else:
            await installation.nc.jetstream().delete_consumer("ROUTER", "router")

        async def unsent() -> bool:
            state = await installation.state()
            return bool(state and state["record"].get("unsent"))

        await eventually(unsent, "the event to be stored as unsent")
        await mute.kill()
        other.sidecar.resume()
        await installation.agree(40.0)
        if what == "rise":
            await installation.calm()
        else:
            assert [event["type"] for event in await installation.events()] == ["monitoring_lost"]
        await installation.check()
