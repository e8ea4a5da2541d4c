"""One bucket on a real server: keys by revision, and all of them in one pass."""

from __future__ import annotations

import asyncio
import contextlib

import nats
import pytest
from nats.aio.client import Client
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats import api, kv
from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.kv import Bucket
from nats_backpressure.runtime.ports import Conflict, Unavailable
from tests.conftest import StartServer
from tests.simulations.stored_samples import Requests
from tests.support.connected import connected, options
from tests.support.sidecar import eventually


@pytest.fixture
async def bucket(nc: Client) -> Bucket:
    await nc.jetstream().create_key_value(bucket="b")
    return Bucket(JetStreamApi(Requests(nc)), lambda: nc, "b")


async def test_a_key_is_updated_only_over_the_expected_revision(bucket: Bucket) -> None:
    first = await bucket.update("k", b"1", 0)
    with pytest.raises(Conflict):
        await bucket.update("k", b"other", 0)
    second = await bucket.update("k", b"2", first)
    with pytest.raises(Conflict):
        await bucket.delete("k", first)
    message = await bucket.get("k")
    assert message is not None
    assert (message.data, message.seq, message.deleted) == (b"2", second, False)


async def test_a_deleted_key_is_a_marker_with_a_revision(bucket: Bucket) -> None:
    await bucket.delete("k", await bucket.put("k", b"1"))
    message = await bucket.get("k")
    assert message is not None and message.deleted
    assert await bucket.update("k", b"2", message.seq) == message.seq + 1


async def test_a_key_that_was_never_written_is_none(bucket: Bucket) -> None:
    assert await bucket.get("k") is None and await bucket.get(">") is None


async def test_all_keys_come_in_one_pass_with_their_last_write(bucket: Bucket, nc: Client) -> None:
    for n in range(100):
        await bucket.put(f"k.{n}", b"old")
        await bucket.put(f"k.{n}", b"%d" % n)
    await bucket.delete("k.7", 16)
    entries = {key: message async for key, message in bucket.entries()}
    assert len(entries) == 100
    assert entries["k.7"].deleted and entries["k.99"].data == b"99" and entries["k.99"].at > 0
    assert nc._subs.keys() <= {1}, "no subscription is left"


async def test_without_the_bucket_there_is_no_info_and_no_entry(nc: Client) -> None:
    bucket = Bucket(JetStreamApi(Requests(nc)), lambda: nc, "none")
    assert await bucket.info() is None
    with pytest.raises(Unavailable):
        [entry async for entry in bucket.entries()]


async def test_any_kv_client_reads_what_was_written(bucket: Bucket, nc: Client) -> None:
    revision = await bucket.put("k", b"1")
    entry = await (await nc.jetstream().key_value("b")).get("k")
    assert (entry.value, entry.revision) == (b"1", revision)


async def ignore(error: Exception) -> None:
    """nats-py would print it."""


@pytest.mark.parametrize("right", ["$JS.API.CONSUMER.CREATE.KV_b.>", "$JS.API.CONSUMER.MSG.NEXT.KV_b.*"])
async def test_without_a_right_to_use_a_consumer_keys_are_read_one_by_one_and_the_right_is_named_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, right: str
) -> None:
    monkeypatch.setattr(api, "TIMEOUT", 0.2)
    monkeypatch.setattr(kv, "SILENCE", 0.2)
    denied = f'{{user: u, password: p, permissions: {{publish: {{deny: "{right}"}}}}}}'
    server = await start_server(f"authorization {{ users: [ {{user: all, password: all}}, {denied} ] }}")
    async with (
        await nats.connect(server.url, user="all", password="all") as admin,
        await nats.connect(server.url, user="u", password="p", error_cb=ignore) as nc,
    ):
        store = await admin.jetstream().create_key_value(bucket="b")
        bucket = Bucket(JetStreamApi(Requests(nc)), lambda: nc, "b")
        for key in "abc":
            await store.put(key, key.encode())
        await store.delete("b")
        with capture_logs() as logged:
            for _ in range(kv.REFUSED_AFTER):
                with pytest.raises(Unavailable):
                    [entry async for entry in bucket.entries()]
            for after, keys in ((0, ["a", "c", "b"]), (3, ["b"])):
                entries = [(key, message.deleted) async for key, message in bucket.entries(after)]
                assert entries == [(key, key == "b") for key in keys]
            assert min([message.at async for _, message in bucket.entries()]) > 1e9
            monkeypatch.setattr(bucket, "_singly_until", 0.0)
            with pytest.raises(Unavailable):
                [entry async for entry in bucket.entries()]
            assert [key async for key, _ in bucket.entries()] == ["a", "c", "b"]
        (line,) = [line for line in logged if line["log_level"] == "warning"]
        assert line["hint"].endswith(
            "allow it to publish $JS.API.CONSUMER.CREATE.KV_b.> and $JS.API.CONSUMER.MSG.NEXT.KV_b.*"
        )
        denied_at_once = right.removesuffix(".>")
        assert denied_at_once in line["error"] if denied_at_once != right else line["error"] == "nothing came in time"


async def test_without_room_for_a_consumer_keys_are_read_one_by_one_at_once(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = "accounts {{ A {{ jetstream: {{max_consumers: {}}}, users: [{{user: u, password: p}}] }} }}"
    server = await start_server(limited.format(1))
    async with await nats.connect(server.url, user="u", password="p") as nc:
        store = await nc.jetstream().create_key_value(bucket="b")
        bucket = Bucket(JetStreamApi(Requests(nc)), lambda: nc, "b")
        for key in "ab":
            await store.put(key, key.encode())
        watcher = await store.watchall()
        with capture_logs() as logged:
            for _ in range(3):
                monkeypatch.setattr(bucket, "_singly_until", 0.0)
                assert [key async for key, _ in bucket.entries()] == ["a", "b"]
        (line,) = logged
        assert line["event"] == "bucket.read_singly" and "no more consumers: raise its max_consumers" in line["hint"]
        await watcher.stop()
        server.reload(limited.format(5))

        async def read() -> bool:
            monkeypatch.setattr(bucket, "_singly_until", 0.0)
            with contextlib.suppress(Unavailable):  # while a server reloads an account, nobody responds in it
                return [key async for key, _ in bucket.entries()] == ["a", "b"]
            return False

        await eventually(read, "all keys")


@pytest.mark.parametrize("right", ["CONSUMER.CREATE.KV_b.>", "CONSUMER.MSG.NEXT.KV_b.*"])
async def test_a_right_that_the_server_denies_is_named_and_done_without_at_once(
    start_server: StartServer, right: str
) -> None:
    denied = f'{{user: u, password: p, permissions: {{publish: {{deny: "$JS.API.{right}"}}}}}}'
    server = await start_server(f"authorization {{ users: [ {{user: all, password: all}}, {denied} ] }}")
    async with await nats.connect(server.url, user="all", password="all") as admin:
        await (await admin.jetstream().create_key_value(bucket="b")).put("a", b"a")
    async with connected(options(server, user="u", password="p")) as (connection, _):

        async def is_connected() -> bool:
            return connection.connected

        await eventually(is_connected, "the connection")
        bucket = Bucket(JetStreamApi(connection), lambda: connection.client, "b")
        async with asyncio.timeout(kv.SILENCE / 2):
            with pytest.raises(Unavailable, match=f"Permissions Violation.*{right[:-2]}"):
                [entry async for entry in bucket.entries()]
            assert [key async for key, _ in bucket.entries()] == ["a"]
