"""Following one of our own streams on a real server: nothing twice, nothing missing, and no request while it rests."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats import api, stream_follower
from nats_backpressure.adapters.nats.api import ApiError, JetStreamApi, Message
from nats_backpressure.adapters.nats.api_types import NoLeader
from nats_backpressure.adapters.nats.stream_follower import StreamFollower
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import Unavailable
from tests.conftest import StartServer
from tests.fakes.clock import FakeClock
from tests.support.background import meanwhile
from tests.support.sidecar import eventually


class Followed:
    """A stream `S` that is followed, and what was taken of it."""

    def __init__(self, nc: Client) -> None:
        self.nc = self.client = nc
        self.taken: list[bytes] = []
        self.read: list[int] = []
        self.requests: list[str] = []
        js = JetStreamApi(self)
        self.follower = StreamFollower(js, lambda: self.client, SystemClock(), "S", "s.>", self._take, self._read_all)

    async def request(self, subject: str, payload: bytes, seconds: float, headers: Any = None) -> Msg:
        self.requests.append(subject)
        try:
            return await self.client.request(subject, payload, timeout=seconds, headers=headers)
        except Exception as error:
            raise Unavailable(str(error)) from error

    def _take(self, message: Message) -> None:
        self.taken.append(message.data)

    async def _read_all(self, info: Any) -> int:
        self.read.append(info.state.last_seq)
        return int(info.state.last_seq)

    async def publish(self, *payloads: str) -> int:
        seq = 0
        for payload in payloads:
            seq = (await self.nc.jetstream().publish(f"s.{payload}", payload.encode())).seq
        return seq

    async def look(self, last_seq: int | None = None, created: str | None = None, asked_at: float = math.inf) -> None:
        """A list of streams shows the stream, or pretends to."""
        info = (await JetStreamApi(self).stream("S")) if last_seq is None or created is None else None
        shown = info.state.last_seq if info and last_seq is None else last_seq or 0
        look = StreamLook("S", created or (info.created if info else ""), 1, shown, shown)
        self.follower.take_look(look, asked_at)

    async def read_times(self, n: int) -> None:
        async def so_often() -> bool:
            return len(self.read) == n

        await eventually(so_often, f"{n} readings of everything, not {self.read}", 10)

    async def took(self, *payloads: str) -> None:
        async def all_there() -> bool:
            return self.taken == [payload.encode() for payload in payloads]

        await eventually(all_there, f"{payloads}, not {self.taken}", 10)


@pytest.fixture
async def followed(start_server: StartServer) -> AsyncIterator[Followed]:
    server = await start_server()
    async with await nats.connect(server.url) as nc:
        await nc.jetstream().add_stream(name="S", subjects=["s.>"])
        yield Followed(nc)


@asynccontextmanager
async def following(followed: Followed) -> AsyncIterator[None]:
    async with meanwhile(followed.follower.run()):

        async def was_read() -> bool:
            return bool(followed.read)

        await eventually(was_read, "the first reading")
        yield


async def test_what_is_stored_arrives_in_order_and_nothing_is_requested_while_it_rests(followed: Followed) -> None:
    await followed.publish("before")
    async with following(followed):
        names = [str(n) for n in range(250)]
        await followed.publish(*names)
        await followed.took(*names)
        assert (followed.read, followed.follower.position.reached) == ([1], 251)
        await asyncio.sleep(0.5)  # a time in which something would be requested
        assert [request.split(".")[2:4] for request in followed.requests] == [
            ["STREAM", "INFO"],
            ["CONSUMER", "CREATE"],
        ]


async def test_own_writes_are_not_taken_and_count_as_accounted_for_once_nothing_before_them_is_missing(
    followed: Followed,
) -> None:
    async with following(followed):
        await followed.publish("theirs")
        await followed.took("theirs")
        followed.follower.position.wrote(3)
        followed.follower.position.wrote(2)
        assert followed.follower.position.reached == 3
        followed.follower.position.wrote(5)
        assert followed.follower.position.reached == 3
        await followed.publish("own-2", "own-3", "theirs-4", "own-5", "theirs-6")
        await followed.took("theirs", "theirs-4", "theirs-6")


async def test_after_a_consumer_that_was_deleted_everything_is_read_again(followed: Followed) -> None:
    current: list[bool] = []
    followed.follower.on_current = lambda: current.append(followed.follower.is_current)
    async with following(followed):
        await followed.publish("a")
        await followed.took("a")
        for consumer in await followed.nc.jetstream().consumers_info("S"):
            await followed.nc.jetstream().delete_consumer("S", consumer.name)
        await followed.read_times(2)
        await followed.publish("b")
        await followed.took("a", "b")
        assert followed.read == [0, 1] and current == [True, True]


async def test_a_copy_with_the_creation_time_of_the_stream_and_more_messages_is_read_again(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    js, stream = followed.nc.jetstream(), JetStreamApi.stream

    async def as_created_then(api: JetStreamApi, name: str) -> Any:  # servers before 2.15 restore that, too
        return None if (info := await stream(api, name)) is None else msgspec.structs.replace(info, created="then")

    monkeypatch.setattr(JetStreamApi, "stream", as_created_then)
    async with following(followed):
        await followed.publish("a")
        await followed.took("a")
        await js.delete_stream("S")
        await js.add_stream(name="S", subjects=["s.>"])
        await followed.publish("x", "y", "z")
        await followed.read_times(2)
        await followed.publish("b")
        await followed.took("a", "b")


async def test_what_a_list_shows_and_does_not_arrive_is_fetched_by_another_consumer(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(followed):
        await followed.publish("a")
        await followed.took("a")
        receive = followed.follower._receive

        async def lose(message: Msg) -> None: ...

        for subscription in tuple(followed.nc._subs.values()):
            if subscription._cb == receive:
                subscription._cb = lose
        await followed.publish("b")
        await followed.look()
        await followed.took("a", "b")
        assert followed.read == [0]


@pytest.mark.parametrize("what", ["recreated", "gone back", "another connection"])
async def test_everything_is_read_again_where_the_stream_may_be_another_one(
    followed: Followed, start_server: StartServer, what: str
) -> None:
    async with following(followed):
        await followed.publish("a", "b")
        await followed.took("a", "b")
        await followed.look()
        if what == "recreated":
            await followed.nc.jetstream().delete_stream("S")
            await followed.nc.jetstream().add_stream(name="S", subjects=["s.>"])
            await followed.publish("c")
            await followed.look()
        elif what == "gone back":
            await followed.look(last_seq=1)
        else:
            url = followed.nc.connected_url
            assert url is not None
            followed.client = await nats.connect(url.geturl())
            await followed.look()

        async def again() -> bool:
            return len(followed.read) == 2

        await eventually(again, "another reading")
        await followed.publish("d")
        await followed.took("a", "b", "d")
        if followed.client is not followed.nc:
            await followed.client.close()


@pytest.mark.parametrize(
    ("what", "told"),
    [("recreated", [False]), ("recreated empty", []), ("gone back", [True]), ("another connection", [])],
)
async def test_another_or_an_older_stream_with_messages_is_told_once(
    followed: Followed, start_server: StartServer, what: str, told: list[bool]
) -> None:
    others: list[bool] = []
    followed.follower.on_other = others.append
    js = followed.nc.jetstream()
    async with following(followed):
        await followed.publish("a", "b")
        await followed.took("a", "b")
        if what.startswith("recreated"):
            await js.delete_stream("S")
            await js.add_stream(name="S", subjects=["s.>"])
            await followed.publish(*([] if "empty" in what else ["c"]))
        elif what == "gone back":
            followed.follower.position.reach(99)  # as if so much had been there
            await followed.look()
        else:
            assert followed.nc.connected_url is not None
            followed.client = await nats.connect(followed.nc.connected_url.geturl())
        for readings in (2, 2):
            await followed.look()

            async def again(n: int = readings) -> bool:
                return len(followed.read) == n

            await eventually(again, "another reading")
        assert others == told
        if followed.client is not followed.nc:
            await followed.client.close()


@pytest.mark.parametrize("lost", [0, 2])
@pytest.mark.parametrize("since", [0, 1, 2, 5])
async def test_an_older_copy_is_told_also_where_others_have_written_more_than_was_lost(
    start_server: StartServer, lost: int, since: int
) -> None:
    server, others = await start_server(), list[bool]()
    async with await nats.connect(server.url) as nc:
        await nc.jetstream().add_stream(name="S", subjects=["s.>"])
        await Followed(nc).publish("a", "b")
    copy, stream = server.directory / "copy", next((server.directory / "store").rglob("S"))
    await server.stop()
    shutil.copytree(stream, copy)
    await server.start()
    before = await nats.connect(server.url)
    followed = Followed(before)
    followed.follower.on_other = others.append
    later = [f"lost-{n}" for n in range(lost)]
    async with following(followed):
        await followed.publish(*later)
        await followed.took(*later)
        await before.close()
        await server.stop()
        shutil.rmtree(stream)
        shutil.copytree(copy, stream)
        await server.start()
        async with await nats.connect(server.url) as after:
            followed.nc = after
            await followed.publish(*[f"new-{n}" for n in range(since)])
            followed.client = after
            followed.follower.connected()

            async def is_current() -> bool:
                return followed.follower.is_current

            await eventually(is_current, "it to be read on the new connection", 10)
            assert others == ([True] if lost else [])
            assert followed.read == [2, 2 + since]


async def test_a_list_that_was_asked_for_before_a_write_and_comes_after_another_one_shows_nothing_lost(
    followed: Followed,
) -> None:
    async with following(followed):
        before = SystemClock().now().mono
        await followed.publish("a")
        await followed.took("a")
        await followed.look()
        await followed.look(0, asked_at=before)
        assert followed.read == [0], "it was only late"
        await followed.look(0)

        async def read_again() -> bool:
            return len(followed.read) == 2

        await eventually(read_again, "everything read again")


async def test_an_end_that_was_deleted_is_no_message_that_is_missing(followed: Followed) -> None:
    async with following(followed):
        await followed.publish("a", "b")
        await followed.took("a", "b")
        for subscription in tuple(followed.nc._subs.values()):
            if subscription._cb == followed.follower._receive:
                await subscription.unsubscribe()
        last = await followed.publish("c")
        await followed.nc.jetstream().delete_msg("S", last)
        await followed.look()

        async def reached() -> bool:
            return followed.follower.position.reached == last

        await eventually(reached, "the end to be accounted for")
        await followed.publish("d")
        await followed.took("a", "b", "d")


async def test_a_pull_that_ends_in_time_is_followed_by_the_next(
    followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_follower, "EXPIRES", 0.2)
    async with following(followed):
        await asyncio.sleep(0.7)  # three pulls
        await followed.publish("a")
        await followed.took("a")
        assert len(followed.requests) == 2, "still the first consumer"


async def test_a_stored_message_that_looks_like_a_status_is_only_a_message(followed: Followed) -> None:
    async with following(followed):
        await followed.nc.jetstream().publish("s.x", b"x", headers={"Status": "409"})
        await followed.publish("y")
        await followed.took("x", "y")
        assert len(followed.requests) == 2, "still the first consumer"


class _LaggingNode:
    """The API of a stream with 100 messages, on a node that has only 99 of them so far; and the connection to it."""

    prefix, is_connected = "$JS.API", True

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.deliver: Callable[[Any], Awaitable[None]]

    async def stream(self, name: str) -> Any:
        return SimpleNamespace(created="c", state=SimpleNamespace(last_seq=100))

    async def create_consumer(self, stream: str, pattern: str, **config: Any) -> tuple[str, Any]:
        self.starts.append(config["opt_start_seq"])
        return "n", SimpleNamespace(num_pending=0)

    def new_inbox(self) -> str:
        return "inbox"

    async def subscribe(self, inbox: str, cb: Callable[[Any], Awaitable[None]]) -> Any:
        self.deliver = cb
        return SimpleNamespace(unsubscribe=self.publish)

    async def publish(self, *arguments: Any, **more: Any) -> None:
        pass

    def message(self, seq: int) -> Any:
        about = SimpleNamespace(
            sequence=SimpleNamespace(consumer=1, stream=seq), num_pending=0, timestamp=datetime.now(UTC)
        )
        return SimpleNamespace(subject="s.x", data=b"late", headers={}, metadata=about)


async def test_what_a_node_that_lags_behind_delivers_late_is_taken() -> None:
    node, taken = _LaggingNode(), list[int]()

    async def read_all(info: Any) -> int:
        return 99

    follower = StreamFollower(
        cast(JetStreamApi, node),
        lambda: cast(Client, node),
        SystemClock(),
        "S",
        "s.>",
        lambda message: taken.append(message.seq),
        read_all,
    )
    async with meanwhile(follower.run()):

        async def waits() -> bool:
            return follower.position.reached == 100

        await eventually(waits, "what the stream shows is accounted for")
        assert node.starts == [100]
        await node.deliver(node.message(100))

        async def took() -> bool:
            return taken == [100]

        await eventually(took, "the late message")


class _LeaderlessNode(_LaggingNode):
    """Of a cluster that has no leader as long as there is an error."""

    error: Exception | None = None
    tries = 0

    async def stream(self, name: str) -> Any:
        self.tries += 1
        if self.error is not None:
            raise self.error
        return await super().stream(name)


@pytest.mark.parametrize("error", [NoLeader("S"), ApiError(503, 10008, "JetStream system temporarily unavailable")])
async def test_a_stream_without_a_leader_is_no_missing_right_and_nothing_is_current_before_it_has_one(
    error: Exception,
) -> None:
    node, clock = _LeaderlessNode(), FakeClock()
    node.error = error

    async def read_all(info: Any) -> int:
        return 100

    api_, client = cast(JetStreamApi, node), cast(Client, node)
    follower = StreamFollower(api_, lambda: client, clock, "S", "s.>", lambda message: None, read_all)
    with capture_logs() as logged:
        async with meanwhile(follower.run()):
            await clock.until(lambda: node.tries > 2 * stream_follower.LOGGED_AT, "many tries")
            assert not follower.is_current, "what is stored was not read"
            node.error = None
            await clock.until(lambda: follower.is_current, "the first reading", stream_follower.LAST_RETRY)
    assert {line["log_level"] for line in logged} == {"debug"}


def users(denied: str = "") -> str:
    return (
        "accounts { A { jetstream: enabled, users: [ {user: admin, password: a}, "
        f"{{user: sidecar, password: s, permissions: {{publish: {{deny: [{denied}]}}}}}} ] }} }}"
    )


MISSING = {
    "create consumers": '"$JS.API.CONSUMER.CREATE.S.>"',
    "pull": '"$JS.API.CONSUMER.MSG.NEXT.S.*"',
    "delete consumers, which costs nothing": '"$JS.API.CONSUMER.DELETE.S.>"',
}


async def ignore(error: Exception) -> None:
    """nats-py would print it."""


@pytest.mark.parametrize(("missing", "denied"), MISSING.items(), ids=MISSING)
async def test_without_a_right_what_the_list_shows_is_read_and_the_right_is_named_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, missing: str, denied: str
) -> None:
    monkeypatch.setattr(api, "TIMEOUT", 0.2)
    monkeypatch.setattr(stream_follower, "LAST_RETRY", 0.1)
    monkeypatch.setattr(stream_follower, "RARELY", 1.0)
    server = await start_server(users(denied))
    async with (
        await nats.connect(server.url, user="admin", password="a") as admin,
        await nats.connect(server.url, user="sidecar", password="s", error_cb=ignore) as sidecar,
    ):
        await admin.jetstream().add_stream(name="S", subjects=["s.>"])
        followed, written = Followed(admin), 0
        followed.client = sidecar
        needed = not missing.startswith("delete")

        async def warned() -> bool:
            nonlocal written
            written += 1
            await followed.publish(f"{written}")
            return not needed or any(line["log_level"] == "warning" for line in logged)

        async def list_streams() -> None:
            while True:
                await followed.look()
                await asyncio.sleep(0.05)

        with capture_logs() as logged:
            async with following(followed):
                async with meanwhile(list_streams()):
                    await eventually(warned, "the warning")
                    await followed.publish("one", "two")
                    expected = [*(str(n) for n in range(1, written + 1)), "one", "two"]
                    await followed.took(*expected)
                    server.reload(users())
                    await followed.publish("three")
                    await followed.took(*expected, "three")
                await followed.publish("four")  # no list shows it
                await followed.took(*expected, "three", "four")
        warnings = [line for line in logged if line["log_level"] == "warning"]
        assert len(warnings) == needed and all(
            "CONSUMER.CREATE.S.>" in line["hint"] and "CONSUMER.MSG.NEXT.S.*" in line["hint"] for line in warnings
        )


async def test_an_outage_is_no_missing_right(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it lasts; after it the stream is followed at once."""
    monkeypatch.setattr(stream_follower, "LAST_RETRY", 0.01)
    away = True

    def client() -> Client:
        if away:
            raise Unavailable("not connected to NATS")
        return followed.client

    monkeypatch.setattr(followed.follower, "_client", client)

    async def tried_often() -> bool:
        return len(logged) > 2 * stream_follower.LOGGED_AT

    async def was_read() -> bool:
        return bool(followed.read)

    with capture_logs() as logged:
        async with meanwhile(followed.follower.run()):
            await eventually(tried_often, "many tries")
            away = False
            await eventually(was_read, "the first reading")
            await followed.publish("one")
            await followed.took("one")
    assert {line["log_level"] for line in logged} == {"debug"}


async def test_a_stream_that_is_missing_is_no_warning_and_is_followed_once_it_is_there(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who creates it logs why it is missing; the hint of this line would be about other rights."""
    monkeypatch.setattr(stream_follower, "LAST_RETRY", 0.05)
    server = await start_server()
    async with await nats.connect(server.url) as nc:
        followed = Followed(nc)

        async def tried_often() -> bool:
            return len(logged) > 2 * stream_follower.LOGGED_AT

        async def was_read() -> bool:
            return bool(followed.read)

        with capture_logs() as logged:
            async with meanwhile(followed.follower.run()):
                await eventually(tried_often, "many tries")
                await nc.jetstream().add_stream(name="S", subjects=["s.>"])
                await eventually(was_read, "the first reading")
                await followed.publish("one")
                await followed.took("one")
        assert {line["log_level"] for line in logged} == {"debug"}


async def test_without_rights_another_stream_is_read_from_its_beginning(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "TIMEOUT", 0.2)
    monkeypatch.setattr(stream_follower, "LAST_RETRY", 0.1)
    server = await start_server(users(", ".join(MISSING.values())))
    async with (
        await nats.connect(server.url, user="admin", password="a") as admin,
        await nats.connect(server.url, user="sidecar", password="s", error_cb=ignore) as sidecar,
    ):
        await admin.jetstream().add_stream(name="S", subjects=["s.>"])
        followed = Followed(admin)
        followed.client = sidecar

        async def read_all(info: Any) -> int:  # a retry may read the other stream before a look shows it
            followed.read.append(info.state.last_seq)
            for seq in range(1, info.state.last_seq + 1):
                data = (await admin.jetstream().get_msg("S", seq)).data or b""
                followed.taken += [data] if data not in followed.taken else []
            return int(info.state.last_seq)

        followed.follower._read_all = read_all
        async with following(followed):
            await followed.publish("a")
            await followed.look()
            await followed.took("a")
            await admin.jetstream().delete_stream("S")
            await admin.jetstream().add_stream(name="S", subjects=["s.>"])
            await followed.publish("b")
            await followed.look()
            await followed.took("a", "b")


async def test_after_a_reconnect_it_is_current_once_everything_was_read_on_the_new_connection(
    followed: Followed,
) -> None:
    """Also where it has just begun to wait for its next try: nothing is written meanwhile."""
    async with following(followed):
        before, url = len(followed.read), followed.nc.connected_url
        assert followed.follower.is_current and url is not None
        async with await nats.connect(url.geturl()) as other:
            followed.client = other
            assert not followed.follower.is_current
            followed.follower.connected()
            assert not followed.follower.is_current

            async def is_current() -> bool:
                return followed.follower.is_current

            await eventually(is_current, "it to be read on the new connection", 5)
            assert len(followed.read) == before + 1
            followed.client = followed.nc


async def test_where_it_cannot_be_read_it_counts_as_current_after_some_tries(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "TIMEOUT", 0.2)
    server = await start_server(users(", ".join(MISSING.values())))
    async with await nats.connect(server.url, user="sidecar", password="s", error_cb=ignore) as sidecar:
        followed = Followed(sidecar)
        assert not followed.follower.is_current
        async with meanwhile(followed.follower.run()):

            async def is_current() -> bool:
                return followed.follower.is_current

            await eventually(is_current, "it to be taken for current", 10)
