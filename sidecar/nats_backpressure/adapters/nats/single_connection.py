"""SingleConnection: one NATS connection for one look at a server: no reconnect, and an error says what to do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import nats.errors
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.credentials import explain
from nats_backpressure.adapters.nats.login import login_hint
from nats_backpressure.adapters.nats.patched_client import PatchedClient, discard
from nats_backpressure.config.nats import Nats
from nats_backpressure.runtime.ports import Unavailable


class SingleConnection:
    """`open` it first."""

    epoch = 1
    """As that of a connection that is never replaced."""
    round_trip = 0.0
    """Not measured."""

    def __init__(self, nats: Nats, name: str, seconds: float) -> None:
        """`seconds`: to connect."""
        self._nats, self._name, self._seconds = nats, name, seconds
        self._client = PatchedClient(None, lambda kind, text: None)

    async def open(self) -> tuple[str, str] | None:
        """Connect; returns the error and what to do about it where that fails."""
        client = self._client
        try:
            async with asyncio.timeout(self._seconds):
                await client.open(self._nats, self._name, self._seconds)
        except Exception as error:  # nats-py raises many types here
            text = (client.because or explain(error)).removeprefix("nats: ").strip("'")
            return text, login_hint(self._nats, text, client._server_info)
        return None

    def client(self) -> PatchedClient:
        """Raises Unavailable where the connection was lost."""
        if not self._client.is_connected:
            raise Unavailable(f"the connection was lost: {self._client.because or 'closed'}")
        return self._client

    async def request(self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None) -> Msg:
        """One request. Raises Unavailable where no reply came for any reason."""
        try:
            return await self.client().request(subject, payload, timeout=seconds, headers=headers)
        except Unavailable:
            raise
        except Exception as error:  # a client that closes meanwhile raises many types
            raise Unavailable(f"{subject}: {explain(error)}") from error

    @contextmanager
    def errors(self) -> Iterator[None]:
        """For what uses the client itself: raises Unavailable for what nats-py raises, which is of many types where the
        connection is lost meanwhile."""
        try:
            yield
        except Unavailable:
            raise
        except Exception as error:
            if self._client.is_connected and not isinstance(error, nats.errors.Error):
                raise
            self.client()
            raise Unavailable(explain(error)) from error

    async def close(self) -> None:
        await discard(self._client)
