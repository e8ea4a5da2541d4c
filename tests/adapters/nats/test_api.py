"""Requests to the JetStream API on a real server: streams, messages, consumers, batches and errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats import api as api_module
from nats_backpressure.adapters.nats.api import (
    AT_ONCE,
    NO_STREAM,
    ApiError,
    BatchReader,
    JetStreamApi,
    Message,
    decoded,
)
from nats_backpressure.adapters.nats.api_types import PubAck
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import settled
from tests.simulations.stored_samples import Requests
from tests.support.servers import NatsServer


@pytest.fixture
async def api(nc: Client) -> JetStreamApi:
    """The API, beside a stream with direct access and the messages 1 to 20 on `s.a`."""
    js = nc.jetstream()
    await js.add_stream(name="S", subjects=["s.*"], allow_direct=True)
    for n in range(1, 21):
        await js.publish("s.a", b"%d" % n, headers={"n": str(n)})
    return JetStreamApi(Requests(nc))


async def test_the_last_and_the_next_message_have_data_and_headers(api: JetStreamApi) -> None:
    last = await api.last("S", "s.a")
    assert last is not None
    assert (last.subject, last.seq, last.data, last.headers["n"]) == ("s.a", 20, b"20", "20")
    following = await api.next("S", "s.*", 7)
    assert following is not None and following.seq == 7
    assert await api.last("S", "s.b") is None
    assert await api.next("S", "s.a", 21) is None


async def test_a_stream_has_its_state_and_its_config_as_the_server_sent_it(api: JetStreamApi) -> None:
    info = await api.stream("S")
    assert info is not None
    assert (info.state.messages, info.state.last_seq, info.config["subjects"]) == (20, 20, ["s.*"])
    assert await api.stream("NONE") is None


async def test_an_error_of_the_server_has_its_codes(api: JetStreamApi) -> None:
    with pytest.raises(ApiError, match="stream not found") as error:
        await api.last("NONE", "s.a")
    assert (error.value.code, error.value.err_code) == (404, NO_STREAM)


@pytest.mark.parametrize("reply", [b"", b"[]", b'{"seq": "1"}', b"\xff", b"[" * 5000])
def test_a_reply_that_cannot_be_read_is_unavailable(reply: bytes) -> None:
    with pytest.raises(Unavailable, match="cannot be read"):
        decoded(reply, PubAck)


class Silent:
    """A connection on which some subjects never get a reply."""

    def __init__(self, connection: Requests) -> None:
        self._connection = connection
        self.hanging = 0

    async def request(self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None) -> Msg:
        if "hang" in subject:
            self.hanging += 1
            await asyncio.Event().wait()
        return await self._connection.request(subject, payload, seconds, headers)


@pytest.mark.parametrize("kind", ["write", "request"])
async def test_those_that_hang_delay_only_their_own_kind(nc: Client, api: JetStreamApi, kind: str) -> None:
    """More hang than may be under way at a time, as where a bucket has lost its quorum."""
    silent = Silent(Requests(nc))
    js = JetStreamApi(silent)

    def hang(n: int) -> Any:
        return js.publish(f"hang.{n}", b"") if kind == "write" else js.stream(f"hang{n}")

    tasks = [asyncio.ensure_future(hang(n)) for n in range(2 * AT_ONCE)]
    try:
        await settled()
        assert silent.hanging == AT_ONCE, "the others wait"
        if kind == "write":
            assert await js.last("S", "s.a") is not None
        else:
            assert (await js.publish("s.a", b"21")).seq == 21
    finally:
        await cancel_and_wait(tasks)
    await js.publish("s.a", b"22")
    assert await js.last("S", "s.a") is not None


async def test_one_that_waits_for_its_turn_in_vain_is_unavailable(monkeypatch: pytest.MonkeyPatch, nc: Client) -> None:
    monkeypatch.setattr(api_module, "TIMEOUT", 0.05)
    js = JetStreamApi(Silent(Requests(nc)))
    results = await asyncio.gather(*(js.publish("hang", b"") for _ in range(AT_ONCE + 1)), return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}


async def test_a_consumer_is_created_with_what_it_has_to_deliver(api: JetStreamApi, nc: Client) -> None:
    name, created = await api.create_consumer("S", "s.a", deliver_policy="by_start_sequence", opt_start_seq=6)
    assert created.num_pending == 15
    info = await nc.jetstream().consumer_info("S", name)
    assert info.config.mem_storage and info.config.inactive_threshold == 30


async def test_a_batch_is_read_with_one_request_where_the_server_can(
    api: JetStreamApi, nc: Client, server: NatsServer
) -> None:
    reader = BatchReader(api, lambda: nc, "S")
    messages = await reader.next("s.a", 5, 10)
    assert reader.many == (server.version >= (2, 11))
    assert [message.seq for message in messages] == (list(range(5, 15)) if reader.many else [5])
    assert [message.seq for message in await reader.next("s.a", 18, 10)] == ([18, 19, 20] if reader.many else [18])
    assert await reader.next("s.a", 21, 10) == await reader.next("s.a", 21, 1) == []


@pytest.mark.parametrize(
    ("prefix", "kv"), [("$JS.API", ""), ("$JS.hub.API", "$JS.hub.API."), ("imported", "imported.")]
)
def test_a_write_to_a_bucket_goes_under_the_prefix(prefix: str, kv: str, nc: Client) -> None:
    assert JetStreamApi(Requests(nc), prefix).kv_prefix == kv


@pytest.mark.parametrize(
    ("headers", "deleted"),
    [
        ({}, False),
        ({"KV-Operation": "DEL"}, True),
        ({"KV-Operation": "PURGE"}, True),
        ({"Nats-Marker-Reason": "MaxAge"}, True),
    ],
)
def test_a_marker_says_that_a_key_was_deleted(headers: dict[str, str], deleted: bool) -> None:
    assert Message("$KV.b.k", 1, b"", headers).deleted is deleted
