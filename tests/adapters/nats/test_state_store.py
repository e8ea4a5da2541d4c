"""The state bucket on a real server, beside other programs that may write it."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats import kv
from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.adapters.nats.observer import JetStreamObserver
from nats_backpressure.adapters.nats.observer_requests import ObserverRequests
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.adapters.nats.state_store import JetStreamStateStore
from nats_backpressure.config.nats import Nats
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.protocol.subjects import HEARTBEAT, encode
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import Conflict, Stored, Unavailable
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.conftest import StartServer
from tests.simulations.stored_samples import NAMES, RECORD, SUBJECT, event, real, value
from tests.support.background import meanwhile
from tests.support.connected import connected, up
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually

DOCUMENTED = """
accounts { A { jetstream: enabled, users: [
  {user: admin, password: a}
  {user: sidecar, password: s, permissions: {
    publish: ["$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.LIST.*", "$JS.API.CONSUMER.INFO.*.*",
      "$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.MSG.GET.*", "$JS.API.CONSUMER.CREATE.KV_backpressure_state.>",
      "$JS.API.CONSUMER.DELETE.KV_backpressure_state.>", "$JS.API.CONSUMER.MSG.NEXT.KV_backpressure_state.*",
      "$KV.backpressure_state.>", "backpressure.v1.event.>"]
    subscribe: ["_INBOX.>"]}}
]}}
"""


async def test_a_foreign_value_is_ignored_and_overwritten(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        await kv.put(encode(SUBJECT), b"not a state")
        assert await store.load_all() == {}
        stored = await store.load(SUBJECT)
        assert stored is not None
        assert stored.record is None
        await store.write(SUBJECT, value(RECORD, "n1"), stored.revision, "n1")


async def test_all_of_many_keys_are_loaded_without_heartbeats(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        for n in range(300):
            await store.write(
                f"s.{n}", value(msgspec.structs.replace(RECORD, subject=f"s.{n}", unsent=()), "n"), 0, "n"
            )
        await store.write_heartbeat(b"{}")
        assert len(await store.load_all()) == 300


async def fill(nc: Client, subjects: int, size: int = 0) -> None:
    """Store a record of each of so many subjects, in values of some `size` bytes."""
    record = msgspec.structs.replace(RECORD, unsent=())
    for n in range(subjects):
        subject = f"s.{n}"
        stored = value(msgspec.structs.replace(record, subject=subject), "n")
        stored = stored[:-1] + b',"more":"%s"}' % (b"x" * max(0, size - len(stored)))
        await nc.publish(f"$KV.{NAMES.state_bucket}.{encode(subject)}", stored)
        if n % 1000 == 0:
            await nc.flush()
    info = await nc.jetstream().stream_info(f"KV_{NAMES.state_bucket}")
    while info.state.messages < subjects:
        info = await nc.jetstream().stream_info(f"KV_{NAMES.state_bucket}")


class WaitingBytes:
    """The most bytes that ever waited in a subscription of a client."""

    def __init__(self, nc: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        receive = type(nc)._process_msg

        async def watched(client: Client, *message: Any) -> None:
            await receive(client, *message)
            self.most = max(self.most, *(one.pending_bytes for one in client._subs.values()), 0)

        monkeypatch.setattr(type(nc), "_process_msg", watched)


@pytest.mark.parametrize("subjects", [5_000, pytest.param(50_000, marks=pytest.mark.slow)])
async def test_many_states_are_loaded_with_few_in_memory_and_pauses_in_between(
    nc: Client, monkeypatch: pytest.MonkeyPatch, subjects: int
) -> None:
    """50,000 of some 2.9 KiB each are more than the server sends to a client that reads slowly."""
    async with real(nc) as (_, store, _):
        await fill(nc, subjects, 2900)
        waiting, turns = WaitingBytes(nc, monkeypatch), 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with meanwhile(count_turns()):
            assert len(await store.load_all()) == subjects
        assert waiting.most <= 100 * 4000
        assert turns > subjects / 100, "others have turns while it reads"


async def test_a_reading_that_failed_continues_where_it_was(nc: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it ends however slow the store is. What changes meanwhile counts."""
    async with real(nc) as (_, store, _):
        await fill(nc, 1000)
        read = list[int]()
        last = kv.Message

        def message(subject: str, seq: int, *rest: Any) -> Message:
            read.append(seq)
            if len(read) % 300 == 0:
                raise Unavailable("the reading ends here")
            return last(subject, seq, *rest)

        monkeypatch.setattr(kv, "Message", message)
        with pytest.raises(Unavailable):
            await store.load_all()
        js = nc.jetstream()
        bucket = await js.key_value(NAMES.state_bucket)
        await bucket.delete("s.0")
        await bucket.put("s.1", b"not a state any more")
        loaded: dict[str, Stored] = {}
        for _ in range(3):
            assert not loaded
            with suppress(Unavailable):
                loaded = await store.load_all()
        assert len(read) == 1000 + 2 + 3, "each was read once, but for where it ended"
        assert set(loaded) == {f"s.{n}" for n in range(2, 1000)}
        monkeypatch.setattr(kv, "Message", last)
        assert await store.load_all() == loaded, "the next one begins at the front"


async def test_a_bucket_that_is_another_now_is_read_from_the_front(nc: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    async with real(nc) as (requests, store, _):
        await fill(nc, 20)
        entries = store._bucket.entries

        async def half(after: int = 0) -> AsyncIterator[tuple[str, Message]]:
            async for entry in entries(after):
                yield entry
                if entry[1].seq == 10:
                    raise Unavailable("the bucket is deleted here")

        store._bucket.entries = half  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await store.load_all()
        store._bucket.entries = entries  # type: ignore[method-assign]
        await nc.jetstream().delete_stream(f"KV_{NAMES.state_bucket}")
        await Resources(JetStreamApi(requests), NAMES, 1, 604_800, True).ensure()
        await fill(nc, 3)
        assert set(await store.load_all()) == {"s.0", "s.1", "s.2"}


async def test_streams_are_read_as_before_while_every_write_of_a_state_hangs(server: NatsServer, nc: Client) -> None:
    """Here somebody listens who never replies, as where the bucket has lost its quorum."""

    async def say_nothing(message: Msg) -> None: ...

    await nc.subscribe(f"$KV.{NAMES.state_bucket}.>", cb=say_nothing)
    await nc.jetstream().add_stream(name="S", subjects=["s"])
    async with connected(Nats((server.url,))) as (connection, _):
        await up(connection)
        observer = JetStreamObserver(
            ObserverRequests(connection, SystemClock(), count=lambda what: None, count_request=lambda *request: None)
        )
        store = JetStreamStateStore(
            JetStreamApi(connection), NAMES, lambda what: None, lambda: connection.client, SystemClock()
        )
        writes = [asyncio.ensure_future(store.write(f"s.{n}", b"{}", 0, "n")) for n in range(200)]
        try:
            for _ in range(10):
                async with asyncio.timeout(2):
                    assert [look.name for look in (await observer.streams()).looks] == ["S"]
            assert not any(write.done() for write in writes)
        finally:
            await cancel_and_wait(writes)


async def test_the_bucket_is_one_that_any_kv_client_reads(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        document = json.loads((await kv.get(encode(SUBJECT))).value or b"")
        assert (document["schema"], document["seq"], document["epoch"], document["record"]["nonce"]) == (
            1,
            1,
            "e",
            "n1",
        )
        assert not {"policy", "recovery", "age_ms"} & document.keys()
        assert {"action", "would", "on_unknown", "hold_seconds"} <= document.keys()


async def test_the_value_of_another_key_is_not_ours(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        await kv.put("other", value(RECORD, "n1"))
        stored = await store.load("other")
        assert stored is not None and stored.record is None
        assert await store.load_all() == {}


async def test_of_many_writers_at_once_one_wins(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        writes = (store.write(SUBJECT, value(RECORD, f"n{n}"), 0, f"n{n}") for n in range(20))
        ends = await asyncio.gather(*writes, return_exceptions=True)
        assert sum(isinstance(end, int) for end in ends) == 1
        assert sum(isinstance(end, Conflict) for end in ends) == 19


@pytest.mark.parametrize("how", ["delete", "purge"])
async def test_a_key_that_was_deleted_is_a_conflict_and_can_be_written_again(nc: Client, how: str) -> None:
    async with real(nc) as (_, store, _):
        revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        await getattr(kv, how)(encode(SUBJECT))
        with pytest.raises(Conflict):
            await store.write(SUBJECT, value(RECORD, "n2"), revision, "n2")
        assert await store.load_all() == {}
        await store.write(SUBJECT, value(RECORD, "n3"), 0, "n3")
        assert (await store.load_all())[SUBJECT].record == RECORD


async def test_a_bucket_created_again_is_a_conflict_for_old_revisions(nc: Client) -> None:
    async with real(nc) as (requests, store, _):
        revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
        await nc.jetstream().delete_stream(f"KV_{NAMES.state_bucket}")
        with pytest.raises(Unavailable):
            await store.write(SUBJECT, value(RECORD, "n2"), revision, "n2")
        with pytest.raises(Unavailable):
            await store.load_all()
        await Resources(JetStreamApi(requests), NAMES, 1, 604_800, True).ensure()
        with pytest.raises(Conflict):
            await store.write(SUBJECT, value(RECORD, "n2"), revision, "n2")
        assert await store.load(SUBJECT) is None


async def test_all_of_it_works_in_a_domain(start_server: StartServer, tmp_path: Any) -> None:
    # The last of two jetstream blocks is in force.
    server = await start_server(config=f'jetstream {{ domain: hub, store_dir: "{tmp_path}/hub" }}')
    async with await nats.connect(server.url) as nc, real(nc, "$JS.hub.API") as (requests, store, publisher):
        revision = await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
        await store.write_heartbeat(b"{}")
        assert [subject for subject, _, _ in requests.written] == [
            f"$JS.hub.API.$KV.backpressure_state.{encode(SUBJECT)}",
            "$JS.hub.API.$KV.backpressure_state.=heartbeat",
        ]
        assert (await store.load_all())[SUBJECT].revision == revision
        await publisher.publish(event(1))
        assert (await publisher.last(SUBJECT)) is not None
        await store.remove(SUBJECT, revision)


async def test_the_documented_permissions_suffice(start_server: StartServer) -> None:
    server = await start_server(config=DOCUMENTED)
    async with await nats.connect(server.url, user="sidecar", password="s") as nc, real(nc) as (_, store, publisher):
        await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
        assert (await store.load_all()).keys() == {SUBJECT}
        await publisher.publish(event(1))
        await store.write_heartbeat(b"{}")


def other(store: JetStreamStateStore) -> JetStreamStateStore:
    """Another replica on the same bucket."""
    return JetStreamStateStore(store._bucket._js, NAMES, lambda what: None, store._bucket._client, SystemClock())


def heartbeat(instance: str, schema: int = 1) -> bytes:
    return json.dumps({"schema": schema, "instance": instance}).encode()


async def test_a_heartbeat_is_one_request_and_is_not_written_over_one_that_was_not_seen(nc: Client) -> None:
    async with real(nc) as (_, one, _):
        two, seen = other(one), list[str]()
        one.on_heartbeat = lambda heartbeat: seen.append(heartbeat.instance)
        for _ in range(3):
            assert await one.write_heartbeat(heartbeat("one"))
        assert await two.write_heartbeat(heartbeat("two")) is False, "it has not seen that of the first"
        assert await two.write_heartbeat(heartbeat("two"))
        assert await one.write_heartbeat(heartbeat("one")) is False
        assert await one.write_heartbeat(heartbeat("one")) and seen == ["two"]


async def test_what_is_followed_shows_the_heartbeats_of_others_once(nc: Client) -> None:
    async with real(nc) as (_, one, _):
        two, seen = other(one), list[str]()
        one.on_heartbeat = lambda heartbeat: seen.append(heartbeat.instance)
        await two.write_heartbeat(heartbeat("before"))
        await one.load_all()
        async with meanwhile(one.follow(lambda subject, stored: None)):
            assert await one.write_heartbeat(heartbeat("one")), "what was there is known from the start"
            await two.write_heartbeat(heartbeat("two"))  # overtaken, and known from then on
            await two.write_heartbeat(heartbeat("two"))
            await eventually(lambda: arrived(seen, 1), "the heartbeat of the other one")
            assert await one.write_heartbeat(heartbeat("one")), "it needs no other request"
            one._follower.read_again()
            await two.write_heartbeat(heartbeat("three"))
            await two.write_heartbeat(heartbeat("three"))
            await eventually(lambda: arrived(seen, 2), "the next one")
        assert seen == ["two", "three"]


async def arrived(seen: list[str], n: int) -> bool:
    return len(seen) >= n


async def test_only_the_heartbeat_of_an_instance_that_stopped_is_replaced_by_a_last_one(nc: Client) -> None:
    async with real(nc) as (_, one, _):
        two = other(one)
        assert await one.write_last_heartbeat(b"leaving", ("one",)) is False, "nobody ever wrote one"
        await one.write_heartbeat(heartbeat("one"))
        assert await two.write_last_heartbeat(b"leaving", ("two",)) is False
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        assert (await kv.get(HEARTBEAT)).value == heartbeat("one")
        assert await two.write_last_heartbeat(b"leaving", ("two", "one")) is True
        assert (await kv.get(HEARTBEAT)).value == b"leaving"
        assert await one.write_last_heartbeat(b"leaving", ("one",)) is False


async def test_a_bucket_created_again_takes_heartbeats(nc: Client) -> None:
    async with real(nc) as (requests, store, _):
        for _ in range(5):
            await store.write_heartbeat(heartbeat("one"))
        await nc.jetstream().delete_stream(f"KV_{NAMES.state_bucket}")
        with pytest.raises(Unavailable):
            await store.write_heartbeat(heartbeat("one"))
        with pytest.raises(Unavailable):
            await store.write_last_heartbeat(b"leaving", ("one",))
        await Resources(JetStreamApi(requests), NAMES, 1, 604_800, True).ensure()
        assert await store.write_heartbeat(heartbeat("one")) is True
        assert await store.write_last_heartbeat(b"leaving", ("one",)) is True


async def test_a_state_of_a_newer_version_is_known_as_such(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        kv = await nc.jetstream().key_value(NAMES.state_bucket)
        newer = json.loads(value(RECORD, "n1")) | {"schema": 2, "record": [1]}
        await kv.put(encode(SUBJECT), json.dumps(newer).encode())
        stored = await store.load(SUBJECT)
        assert stored is not None and stored.newer and stored.record is not None
        assert (await store.load_all())[SUBJECT] == stored


async def test_keys_that_went_without_a_trace_are_reported_as_gone_and_own_writes_are_not_reported(nc: Client) -> None:
    async with real(nc) as (_, store, _):
        await store.load_all()
        taken: list[tuple[str, Stored]] = []
        async with meanwhile(store.follow(lambda subject, stored: taken.append((subject, stored)))):
            await store.write(SUBJECT, value(RECORD, "n1"), 0, "n1")
            await store.write_heartbeat(b"{}")
            await nc.jetstream().purge_stream(f"KV_{NAMES.state_bucket}")

            async def gone() -> bool:
                info = await store._bucket.info()
                assert info is not None
                state = info.state
                look = StreamLook(info.config["name"], info.created, 1, state.last_seq, state.messages)
                store.take_looks([look], math.inf)
                return bool(taken)

            await eventually(gone, "the key to be reported")
        assert taken == [(SUBJECT, Stored(None, 0))]
