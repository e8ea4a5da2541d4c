"""A NATS connection that is never mended, only replaced.

nats-py can look connected while its reader is dead, and closes for good on several server errors. So its own reconnect
is off: a lost link, a close, a lame duck or a failed round trip all lead to one path, a whole new client with fresh
credentials, on which everything that listens is set up anew.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats.errors
import structlog
from msgspec import Struct
from nats.aio.client import Client as NatsClient
from nats.aio.client import RawCredentials
from nats.aio.msg import Msg

from sidecar.ports import Unavailable

log = structlog.get_logger()

IN_FLIGHT = 64
"""Requests under way; the others wait for their turn, within their own timeout."""
CONTROL_LINE = 4000
"""Bytes of subject, reply and lengths; the server closes the connection at 4,096."""
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds before the next try to connect, growing, with full jitter."""
PROBE_EVERY = PROBE_TIMEOUT = 2.0
"""Seconds between round trips, and for one of them; two that fail in a row end the client."""
SET_UP_WITHIN = 15.0
"""Seconds for connecting and setting up what listens."""


class BadCredentials(Exception):
    """A file that cannot be used as it is; the text names the file and what is wrong, never what it holds."""


class Options(Struct, frozen=True):
    """How to connect. Files are read anew for every client, so that what is rotated is picked up."""

    servers: tuple[str, ...]
    credentials_file: str | None = None
    nkey_seed_file: str | None = None
    nkey_seed: str | None = None
    user: str | None = None
    password: str | None = None
    password_file: str | None = None
    token: str | None = None
    token_file: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    inbox_prefix: str = "_INBOX"

    def __repr__(self) -> str:
        return f"Options(servers={self.plain_servers()})"

    def plain_servers(self) -> tuple[str, ...]:
        """The servers without user and password, as they may be shown."""
        return tuple(f"{s.split('://')[0]}://{s.rsplit('@', 1)[1]}" if "@" in s else s for s in self.servers)


class Client(NatsClient):
    """nats-py's client, less two ways in which a peer could turn it against us."""

    def __init__(self, may_publish: Callable[[str], bool] | None, count: Callable[[str], None]) -> None:
        super().__init__()
        self._may_publish, self._count = may_publish, count

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # An exception here would end the read loop and leave a client that only looks connected
        # (nats.py PR 914); any peer can cause one with a subject or headers that are not UTF-8.
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (UnicodeDecodeError, ValueError):
            self._count("undecodable_message")

    async def publish(self, subject: str, *args: Any, **kwargs: Any) -> None:
        if self._may_publish is not None and not self._may_publish(subject):
            self._count("reply_subject")
            return
        await super().publish(subject, *args, **kwargs)


class Connection:
    """One supervised connection; `client` is the present one, `epoch` rises with each."""

    def __init__(
        self,
        name: str,
        options: Options,
        *,
        set_up: Callable[[Client], Awaitable[None]],
        count: Callable[[str], None],
        on_rebuild: Callable[[], None],
        may_publish: Callable[[str], bool] | None = None,
        probe_every: float = PROBE_EVERY,
        probe_timeout: float = PROBE_TIMEOUT,
    ) -> None:
        self.name, self.epoch = name, 0
        self._options, self._set_up, self._count, self._on_rebuild = options, set_up, count, on_rebuild
        self._may_publish = may_publish
        self._probe_every, self._probe_timeout = probe_every, probe_timeout
        self._client: Client | None = None
        self._ended = asyncio.Event()
        self._turn = asyncio.Semaphore(IN_FLIGHT)
        self._said_unreachable = False
        self._last_error = ""

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client:
        """The present client. Raises Unavailable while there is none."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable("not connected to NATS")
        return self._client

    async def run(self) -> None:
        """Keep one client alive until cancelled."""
        delay = FIRST_RETRY
        while True:
            client = await self._build()
            if client is None:
                await asyncio.sleep(random.uniform(0.2, 1.0) * delay)
                delay = min(delay * 2, LAST_RETRY)
                continue
            delay = FIRST_RETRY
            try:
                await self._watch(client)
            finally:
                self._client = None
                await discard(client)
            log.warning("nats.lost", connection=self.name, because=self._last_error or "closed")
            self._on_rebuild()

    async def _build(self) -> Client | None:
        """A client that is connected and set up, or None, said once per outage."""
        client = Client(self._may_publish, self._count)
        self._ended.clear()
        self._last_error = ""
        try:
            async with asyncio.timeout(SET_UP_WITHIN):
                await client.connect(**self._arguments())
                self._client = client
                self.epoch += 1
                await self._set_up(client)
        except Exception as error:  # whatever it is, the answer is another client
            self._client = None
            await discard(client)
            if not self._said_unreachable:
                because = self._last_error or str(error) or type(error).__name__
                servers = self._options.plain_servers()
                log.warning(
                    "nats.unreachable", connection=self.name, servers=servers, error=because, hint="it keeps trying"
                )
                self._said_unreachable = True
            return None
        self._said_unreachable = False
        log.info("nats.connected", connection=self.name, epoch=self.epoch)
        return client

    def _arguments(self) -> dict[str, Any]:
        return {
            "servers": list(self._options.servers),
            "name": self.name,
            "allow_reconnect": False,
            # Also while connecting nats-py goes round the servers by itself: once or twice each, at once.
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": 2,
            "ping_interval": 10,
            "pending_size": 2 * 1024 * 1024,
            "flush_timeout": 2,
            "inbox_prefix": self._options.inbox_prefix,
            "error_cb": self._on_error,
            "closed_cb": self._on_end,
            "disconnected_cb": self._on_end,
            "lame_duck_mode_cb": self._on_end,
            **credentials(self._options),
        }

    async def _on_error(self, error: Exception) -> None:
        # Must never raise: an exception here ends nats-py's read loop.
        self._last_error = str(error) or type(error).__name__
        kind = "slow_consumer" if isinstance(error, nats.errors.SlowConsumerError) else "nats_error"
        self._count(kind)
        log.debug("nats.error", connection=self.name, error=self._last_error)

    async def _on_end(self) -> None:
        self._ended.set()

    async def _watch(self, client: Client) -> None:
        """Return once the client is of no use any more. Only a round trip proves that it is."""
        failures = 0
        while failures < 2 and not self._ended.is_set() and client.is_connected:
            try:
                async with asyncio.timeout(self._probe_every):
                    await self._ended.wait()
            except TimeoutError:
                failures = 0 if await self._answers(client) else failures + 1
        if failures:
            self._last_error = "no answer to a round trip"

    async def _answers(self, client: Client) -> bool:
        """Whether a PING comes back in time. Not `rtt`: it cancels what a late PONG then trips over, which ends the
        read loop, so that one slow answer (or one busy moment of our own) would cost the connection."""
        pong: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(self._probe_timeout):
                await client._send_ping(pong)
        except Exception:  # any failure is the finding
            return False
        done, _ = await asyncio.wait({pong}, timeout=self._probe_timeout)
        return bool(done)

    async def request(self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None) -> Msg:
        """One request. Raises Unavailable for whatever kept the answer away; it may have been received all the same."""
        try:
            async with asyncio.timeout(seconds), self._turn:
                client = self.client
                check_size(client, subject, payload, headers)
                return await client.request(subject, payload, timeout=seconds, headers=headers)
        except (TimeoutError, nats.errors.Error, OSError) as error:
            raise Unavailable(f"{subject}: {_said(error)}") from error

    async def close(self, seconds: float) -> None:
        """Let go of the client, for so long at most."""
        client, self._client = self._client, None
        if client is not None:
            await discard(client, seconds)


def check_size(client: NatsClient, subject: str, payload: bytes, headers: dict[str, str] | None) -> None:
    """Refuse what would cost us the connection. Raises Unavailable."""
    size = len(payload) + sum(len(k) + len(v) + 4 for k, v in (headers or {}).items()) + 12
    if size > client.max_payload:
        raise Unavailable(
            f"{subject[:80]}: {size} bytes are more than the server's max_payload of {client.max_payload}"
        )
    if len(subject) > CONTROL_LINE - 200:
        raise Unavailable(f"{subject[:80]}...: a subject of {len(subject)} bytes is too long")


async def discard(client: NatsClient, seconds: float = 1.0) -> None:
    """Close a client for good. It may hang or raise in many ways, and none of them matters any more."""
    task = asyncio.ensure_future(client.close())
    await asyncio.wait({task}, timeout=seconds)
    if task.done():
        if not task.cancelled():
            task.exception()
        return
    task.cancel()
    if client._transport is not None:
        client._transport.close()  # type: ignore[no-untyped-call]  # nats-py's transport has no types


def credentials(options: Options) -> dict[str, Any]:
    """What to prove who we are with, read now. Raises BadCredentials for a file that cannot be used."""
    found: dict[str, Any] = {}
    if options.credentials_file:
        # Text, not the path: nats-py loops for ever on an empty or truncated file.
        text = _read(options.credentials_file)
        if "BEGIN NATS USER JWT" not in text or "SEED" not in text:
            raise BadCredentials(f"{options.credentials_file}: no user JWT with its seed in it")
        found["user_credentials"] = RawCredentials(text)
    if options.nkey_seed_file or options.nkey_seed:
        found["nkeys_seed_str"] = _read(options.nkey_seed_file).strip() if options.nkey_seed_file else options.nkey_seed
    if options.user:
        found["user"] = options.user
        found["password"] = _read(options.password_file).strip() if options.password_file else options.password
    if options.token or options.token_file:
        found["token"] = _read(options.token_file).strip() if options.token_file else options.token
    if options.ca_file or options.cert_file or any(s.startswith(("tls://", "wss://")) for s in options.servers):
        found["tls"] = _tls(options)
    return found


def _tls(options: Options) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file:
            context.load_cert_chain(options.cert_file, options.key_file)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(f for f in (options.ca_file, options.cert_file, options.key_file) if f)
        raise BadCredentials(f"TLS files {files}: {_said(error)}") from None
    return context


def _read(path: str) -> str:
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadCredentials(f"{path}: {_said(error)}") from None
    if not text.strip():
        raise BadCredentials(f"{path}: it is empty")
    return text


def _said(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
