"""A supervised connection for tests, with a subscription that records what it receives."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.connection import Connection
from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.config.nats import Nats, Secret
from nats_backpressure.runtime.clock import SystemClock
from tests.support.background import meanwhile
from tests.support.servers import NatsServer
from tests.support.sidecar import eventually

SECRETS = ("password", "token", "nkey_seed")


class Listener:
    """What an adapter does on a connection: subscribe again on each client, and record what it receives."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.counted: Counter[str] = Counter()
        self.rebuilds = 0

    async def set_up(self, client: PatchedClient) -> None:
        async def receive(message: Msg) -> None:
            self.received.append(message.data)

        await client.subscribe("news", cb=receive)
        await client.flush()

    def count(self, what: str) -> None:
        self.counted[what] += 1

    def rebuilt(self) -> None:
        self.rebuilds += 1


@asynccontextmanager
async def connected(
    options: Nats,
    may_publish: Callable[[str], bool] | None = None,
    probe_every: float = 0.1,
    probe_timeout: float = 2.0,
    **more: Any,
) -> AsyncIterator[tuple[Connection, Listener]]:
    """`probe_timeout` is short only where a link falls silent: a busy server that is slow twice would lose it."""
    listener = Listener()
    connection = Connection(
        "test",
        options,
        SystemClock(),
        set_up=listener.set_up,
        count=listener.count,
        on_rebuild=listener.rebuilt,
        may_publish=may_publish,
        probe_every=probe_every,
        probe_timeout=probe_timeout,
        **more,
    )
    async with meanwhile(connection.run()):
        yield connection, listener


async def up(connection: Connection, epoch: int = 1) -> None:
    async def is_up() -> bool:
        return connection.connected and connection.epoch >= epoch

    await eventually(is_up, f"epoch {epoch} to be connected")


async def receives(listener: Listener, publish: Callable[[], Any], payload: bytes) -> None:
    """Publish until the listener has received it."""

    async def received() -> bool:
        with suppress(Exception):
            await publish()
        return payload in listener.received

    await eventually(received, f"{payload!r} to be received")


def options(server: NatsServer, **login: str) -> Nats:
    fields: dict[str, Any] = {name: Secret(value) if name in SECRETS else value for name, value in login.items()}
    return Nats((server.url,), **fields)
