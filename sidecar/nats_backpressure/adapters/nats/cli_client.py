"""The NATS connection of one command: requests to the service and to JetStream, with errors for a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

import msgspec
import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nats_backpressure.adapters.nats.credentials import BadCredentials, explain
from nats_backpressure.adapters.nats.denied_rights import Denied
from nats_backpressure.adapters.nats.patched_client import PatchedClient, check_size, discard, settled
from nats_backpressure.config.nats import Nats
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import Unavailable

WAITING = 10_000
"""Messages that may wait in `subscribe`; further ones are dropped."""

SHOWN = 3
"""Denied subjects that an error names."""
OTHER_INBOX = "--inbox-prefix names inboxes that your user may subscribe to (`_INBOX` most often)"
MISSING_RIGHT = "`nats-backpressure permissions --role operator` prints the rights that commands need"


class ServiceError(Unavailable):
    """An error that the service returned; `code` is the one of the contract."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} ({code})")
        self.code = code


class ServiceClient:
    """Connects when it is first used, and again when it is used after a loss. Raises Unavailable with a text for an
    operator."""

    def __init__(self, nats: Nats, names: Names, seconds: float) -> None:
        self.names, self._nats, self._seconds = names, nats, seconds
        self._client: _Client | None = None

    def client(self) -> NatsClient:
        """The present client."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable("the connection to NATS was lost")
        return self._client

    async def connect(self) -> _Client:
        if self._client is not None and self._client.is_connected:
            return self._client
        await self.close()
        self._client = client = _Client()
        try:
            async with asyncio.timeout(self._seconds):
                await client.open(self._nats, f"{self.names.name}/command", self._seconds)
        except BadCredentials as error:
            raise Unavailable(str(error)) from None
        except Exception as error:  # nats-py raises many types here, and most have less detail than its callback got
            raise Unavailable(f"cannot connect to {self._where}: {_explain(client.first_error or error)}") from None
        return client

    @property
    def _where(self) -> str:
        return ", ".join(self._nats.shown_servers)

    async def request(self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None) -> Msg:
        """One request; the timeout of the command is used, not `seconds`."""
        client = await self.connect()
        check_size(client, subject, payload, headers)
        try:
            async with asyncio.timeout(self._seconds):
                return await client.request(subject, payload, timeout=self._seconds, headers=headers)
        except nats.errors.NoRespondersError:
            raise Unavailable(self._no_responder(subject)) from None
        except Denied as denied:
            raise Unavailable(f"{self._where}: {denied}") from None
        except Exception as error:  # a client that closes meanwhile raises many types
            raise Unavailable(self._no_answer(client, error)) from None

    async def query(self, endpoint: str, body: object = None) -> bytes:
        """The service's answer, a JSON document."""
        payload = b"" if body is None else msgspec.json.encode(body)
        reply = await self.request(f"{self.names.prefix}.{endpoint}", payload, self._seconds)
        headers = reply.headers or {}
        if code := headers.get("Nats-Service-Error-Code"):
            raise ServiceError(code, headers.get("Nats-Service-Error", "refused"))
        return reply.data

    @asynccontextmanager
    async def subscribe(self, subjects: Iterable[str]) -> AsyncIterator[asyncio.Queue[Msg | None]]:
        """A queue of the messages published from now on, and None once the connection is lost."""
        client = await self.connect()
        queue: asyncio.Queue[Msg | None] = asyncio.Queue(WAITING)

        async def put(message: Msg) -> None:
            if not queue.full():
                queue.put_nowait(message)

        subscriptions: list[Subscription] = []
        end = asyncio.ensure_future(client.ended.wait())
        end.add_done_callback(lambda done: None if done.cancelled() or queue.full() else queue.put_nowait(None))
        try:
            try:
                subscriptions = [await client.subscribe(subject, cb=put) for subject in subjects]
                async with asyncio.timeout(self._seconds):
                    await settled(client)  # now the server has them, and has reported a missing permission
            except Exception as error:
                raise Unavailable(self._no_answer(client, error)) from None
            if client.rights.subscriptions:
                raise Unavailable(f"{self._where}: {client.because}")
            yield queue
        finally:
            end.cancel()
            for subscription in subscriptions:
                with suppress(nats.errors.Error):  # the connection may be gone
                    await subscription.unsubscribe()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await discard(client)

    def with_missing_rights(self, error: str) -> str:
        """The text of an error, with what the server has denied: a reply that does not come has no reason."""
        if self._client is None or not (self._client.rights.texts or self._client.rights.subscriptions):
            return error
        rights, prefix = self._client.rights, f"{self._nats.inbox_prefix}."
        others = [text for text in rights.texts if text not in error]
        inbox = any(each.startswith(prefix) for each in rights.subscriptions.values())
        return "; ".join((error, *others[:SHOWN], *([OTHER_INBOX] if inbox else []), MISSING_RIGHT))

    def _no_responder(self, subject: str) -> str:
        if subject.startswith(f"{self.names.prefix}."):
            name = self.names.name
            return (
                f"nobody answers under the name `{name}` at {self._where}: does a sidecar run there (--name)? One that "
                f"may not subscribe to {subject} (its log line `rights.missing`) looks the same"
            )
        return f"nobody answers {subject} at {self._where}: is JetStream enabled for this account?"

    def _no_answer(self, client: _Client, error: Exception) -> str:
        because = client.because.removeprefix("nats: ")
        if not client.is_connected:
            return f"the connection to {self._where} was lost" + (because and f": {because}")
        if because:  # such as a missing permission, which the server reports apart from the request
            return f"{self._where}: {because}"
        if isinstance(error, TimeoutError):
            return f"no answer from {self._where} within {self._seconds:g} s"
        return f"{self._where}: {_explain(error)}"


class _Client(PatchedClient):
    """Stores the first error; nothing is counted or logged."""

    def __init__(self) -> None:
        super().__init__(None, lambda kind, text: None)
        self.first_error: Exception | None = None

    async def on_error(self, error: Exception) -> None:
        self.first_error = self.first_error or error
        await super().on_error(error)


def _explain(error: BaseException) -> str:
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case TimeoutError():
            return "no answer"
    return explain(error).removeprefix("nats: ").strip("'\"")
