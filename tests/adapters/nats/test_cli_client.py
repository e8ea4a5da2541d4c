"""The connection of a command: what it returns, and the errors that an operator reads."""

from __future__ import annotations

import asyncio

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.cli_client import ServiceClient, ServiceError
from nats_backpressure.config.nats import Nats
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import Unavailable
from tests.support.servers import NatsServer

P = "backpressure.v1"


def client_of(url: str, seconds: float = 5.0) -> ServiceClient:
    return ServiceClient(Nats((url,)), Names(), seconds)


async def test_a_reply_is_returned_and_a_service_error_raised_with_its_code(server: NatsServer, nc: Client) -> None:
    async def answer(message: Msg) -> None:
        if message.data:
            await message.respond(message.data)
        else:
            headers = {"Nats-Service-Error-Code": "404", "Nats-Service-Error": "not watched"}
            await nc.publish(message.reply, b"", headers=headers)

    await nc.subscribe(f"{P}.get.status", cb=answer)
    await nc.flush()
    client = client_of(server.url)
    assert await client.query("get.status", {"limit": 1}) == b'{"limit":1}'
    with pytest.raises(ServiceError, match=r"not watched \(404\)") as error:
        await client.query("get.status")
    assert error.value.code == "404"
    await client.close()


async def test_a_subject_without_a_responder_names_what_to_check(server: NatsServer) -> None:
    client = client_of(server.url)
    with pytest.raises(Unavailable, match=r"does a sidecar run there \(--name\)"):
        await client.query("get.status")
    with pytest.raises(Unavailable, match="is JetStream enabled"):
        await client.request("elsewhere", b"", 1)
    await client.close()


async def test_a_server_that_cannot_be_reached_is_named_without_the_password() -> None:
    with pytest.raises(Unavailable, match=r"^cannot connect to nats://127\.0\.0\.1:1: connection refused$"):
        await client_of("nats://user:secret@127.0.0.1:1").connect()


async def test_a_subscription_ends_with_none_when_the_connection_is_lost(server: NatsServer, nc: Client) -> None:
    client = client_of(server.url)
    async with client.subscribe(["news"]) as messages:
        await nc.publish("news", b"1")
        message = await asyncio.wait_for(messages.get(), 30)
        assert message is not None and message.data == b"1"
        await server.kill()
        assert await asyncio.wait_for(messages.get(), 30) is None
    with pytest.raises(Unavailable, match="the connection to NATS was lost"):
        client.client()
    await client.close()


async def test_it_connects_again_after_a_loss(server: NatsServer) -> None:
    client = client_of(server.url)
    first = await client.connect()
    assert await client.connect() is first
    await server.restart(kill=True)
    await asyncio.wait_for(first.ended.wait(), 30)
    assert await client.connect() is not first
    await client.close()
