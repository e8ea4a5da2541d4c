"""A NATS connection that is never mended, only replaced.

nats-py can look connected while its reader is dead, and closes for good on several server errors. So its own reconnect
is off: a lost link, a close, a lame duck or a failed round trip all lead to one path, a whole new client with fresh
credentials, on which everything that listens is set up anew.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats.errors
import nkeys  # type: ignore[import-untyped]
import structlog
from nats.aio.client import Client as NatsClient
from nats.aio.client import RawCredentials
from nats.aio.msg import Msg

from nats_backpressure.config.nats import Nats, Secret, Tls
from nats_backpressure.runtime.ports import TooLarge, Unavailable

log = structlog.get_logger()

IN_FLIGHT = 64
"""Requests under way; the others wait for their turn, within their own timeout."""
CONTROL_LINE, INBOX = 4000, 200
"""Bytes of subject and reply, and of a request's own inbox; with the lengths, the server closes at 4,096."""
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds before the next client, growing with jitter; a client that lived for the longer one starts it anew."""
PROBE_EVERY = PROBE_TIMEOUT = 2.0
"""Seconds between round trips, and for one of them; two that fail in a row end the client."""
SET_UP_WITHIN = 15.0
"""Seconds for connecting and setting up what listens."""
FIRST_DENIED, LAST_DENIED = 5.0, 300.0
"""Seconds with a subscription denied before the next client, growing: a right that is back shows only to a new one."""
SAY_EVERY = 60.0
"""Seconds between two lines about the same kind of trouble; nats-py reports a slow consumer once per message."""


class BadCredentials(Exception):
    """A file that cannot be used as it is; the text names the file and what is wrong, never what it holds."""


class PatchedClient(NatsClient):
    """nats-py's client, less the ways in which a peer could turn it against us; it knows when and why it ended."""

    def __init__(self, may_publish: Callable[[str], bool] | None, note: Callable[[str, str], None]) -> None:
        super().__init__()
        self._may_publish, self._note = may_publish, note
        self.ended = asyncio.Event()  # its own: a late callback of one client must not end the next
        self.because = ""
        self.denied_at: float | None = None

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # An exception here would end the read loop and leave a client that only looks connected (nats.py PR 914).
        # Any peer can cause one: UnicodeDecodeError by its subject, IndexError by a header block without a line end.
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as error:
            self._note("undecodable_message", type(error).__name__)
        else:
            return
        # It raised before anybody was given it. Handed on as far as it can be read, without its headers and with U+FFFD
        # in its subject, it is refused by whoever reads it, and no gap is left in what a consumer delivers.
        with suppress(Exception):
            await super()._process_msg(sid, subject.decode(errors="replace").encode(), reply, data, b"")

    async def _process_pong(self) -> None:
        # A late PONG meets a future that its waiter has cancelled (`flush`, `rtt`); setting it would end the read loop.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        if self._may_publish is not None and not self._may_publish(subject):
            self._note("reply_subject", "")
            return
        check_size(self, subject, payload, headers, reply)
        await super().publish(subject, payload, reply, headers)

    async def on_error(self, error: Exception) -> None:
        # Must never raise: an exception here ends nats-py's read loop.
        self.because = _said(error)
        if "permissions violation" in self.because:
            self._note("permission_denied", self.because)
            if "for subscription" in self.because and self.denied_at is None:
                self.denied_at = time.monotonic()
        else:
            slow = isinstance(error, nats.errors.SlowConsumerError)
            self._note("slow_consumer" if slow else "nats_error", self.because)

    async def on_end(self) -> None:
        self.ended.set()

    def abandon(self) -> None:
        """Let go of what nats-py's own close leaves behind where it fails or hangs half-way: tasks, and the socket."""
        ours = (self._reading_task, self._ping_interval_task, self._flusher_task, self._reconnection_task)
        for task in (*ours, *(subscription._wait_for_msgs_task for subscription in self._subs.values())):
            if task is not None and not task.done():
                task.cancel()
        self._subs.clear()
        if (writer := getattr(self._transport, "_io_writer", None)) is not None:
            # Not close(): that waits until a server which may have stopped for ever has taken what is unsent.
            with suppress(Exception):
                writer.transport.abort()


class Connection:
    """One supervised connection; `client` is the present one, `epoch` rises with each."""

    def __init__(
        self,
        name: str,
        nats: Nats,
        *,
        set_up: Callable[[PatchedClient], Awaitable[None]],
        count: Callable[[str], None],
        on_rebuild: Callable[[], None],
        may_publish: Callable[[str], bool] | None = None,
        probe_every: float = PROBE_EVERY,
        probe_timeout: float = PROBE_TIMEOUT,
        denied_again: float = FIRST_DENIED,
    ) -> None:
        self.name, self.epoch = name, 0
        self._nats, self._set_up, self._count, self._on_rebuild = nats, set_up, count, on_rebuild
        self._may_publish = may_publish
        self._probe_every, self._probe_timeout = probe_every, probe_timeout
        self._first_denied = self._denied_again = denied_again
        self._client: PatchedClient | None = None
        self._closed = asyncio.Event()
        self._turn = asyncio.Semaphore(IN_FLIGHT)
        self._said_unreachable = False
        self._said: dict[str, float] = {}

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> PatchedClient:
        """The present client. Raises Unavailable while there is none."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable("not connected to NATS")
        return self._client

    async def run(self) -> None:
        """Keep one client alive until cancelled, or closed."""
        delay = FIRST_RETRY
        while not self._closed.is_set():
            began = time.monotonic()
            if await self._live() and time.monotonic() - began >= LAST_RETRY:
                delay = FIRST_RETRY
            # Also after a client that did connect: whatever ended it may end the next one at once.
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0.2, 1.0) * delay):
                    await self._closed.wait()
            delay = min(delay * 2, LAST_RETRY)

    async def _live(self) -> bool:
        """The whole life of one client; whether it came to life at all."""
        client = await self._build()
        if client is None:
            return False
        try:
            await self._watch(client)
        finally:
            self._client = None
            await discard(client)
        if not self._closed.is_set():
            log.warning("nats.lost", connection=self.name, because=client.because or "closed")
            self._on_rebuild()
        denied = client.denied_at is not None
        self._denied_again = min(2 * self._denied_again, LAST_DENIED) if denied else self._first_denied
        return True

    async def _build(self) -> PatchedClient | None:
        """A client that is connected and set up, or None, said once per outage."""
        client = PatchedClient(self._may_publish, self._note)
        try:
            async with asyncio.timeout(SET_UP_WITHIN):
                await client.connect(**self._arguments(client))
                self._client = client
                self.epoch += 1
                await self._set_up(client)
        except BaseException as error:  # whatever it is, the answer is another client; a cancel leaves none behind
            self._client = None
            await discard(client)
            if not isinstance(error, Exception):
                raise
            if not self._said_unreachable:
                because = client.because or str(error) or type(error).__name__
                servers = self._nats.shown_servers
                log.warning(
                    "nats.unreachable", connection=self.name, servers=servers, error=because, hint="it keeps trying"
                )
                self._said_unreachable = True
            return None
        self._said_unreachable = False
        log.info("nats.connected", connection=self.name, epoch=self.epoch)
        return client

    def _arguments(self, client: PatchedClient) -> dict[str, Any]:
        return {
            "servers": list(self._nats.servers),
            "name": self.name,
            "allow_reconnect": False,
            # Also while connecting nats-py goes round the servers by itself: once or twice each, at once.
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0,
            "connect_timeout": 2,
            "ping_interval": 10,
            "pending_size": 2 * 1024 * 1024,
            "flush_timeout": 2,
            "inbox_prefix": self._nats.inbox_prefix,
            "error_cb": client.on_error,
            "closed_cb": client.on_end,
            "disconnected_cb": client.on_end,
            "lame_duck_mode_cb": client.on_end,
            **credentials(self._nats),
        }

    def _note(self, kind: str, said: str) -> None:
        """Count it, and say it once in a while. Never raises: it is called from within nats-py's read loop."""
        with suppress(Exception):
            self._count(kind)
            now = time.monotonic()
            known = kind == "nats_error" or now - self._said.get(kind, -SAY_EVERY) < SAY_EVERY
            if not known:
                self._said[kind] = now
            (log.debug if known else log.warning)("nats.error", connection=self.name, kind=kind, error=said)

    async def _watch(self, client: PatchedClient) -> None:
        """Return once the client is of no use any more. Only a round trip proves that it is."""
        failures = 0
        while not self._closed.is_set() and not client.ended.is_set() and client.is_connected:
            if failures >= 2:
                client.because = "no answer to a round trip"
                return
            if client.denied_at is not None and time.monotonic() - client.denied_at >= self._denied_again:
                return
            try:
                async with asyncio.timeout(self._probe_every):
                    await client.ended.wait()
            except TimeoutError:
                failures = 0 if await self._answers(client) else failures + 1

    async def _answers(self, client: PatchedClient) -> bool:
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
                check_size(client, subject, payload, headers)  # before nats-py: it leaks what it could not publish
                answer = await client.request(subject, payload, timeout=seconds, headers=headers)
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError  # nats-py loses one that comes together with the answer (ending.py)
                return answer
        except Unavailable:
            raise
        except Exception as error:  # a client that closes under a request raises many things, uvloop's RuntimeError too
            raise Unavailable(f"{subject}: {_said(error)}") from error

    async def close(self, seconds: float) -> None:
        """End for good, within so many seconds; `run` returns soon after."""
        self._closed.set()
        client, self._client = self._client, None
        if client is not None:
            await discard(client, seconds)
            client.ended.set()


def check_size(
    client: NatsClient, subject: str, payload: bytes, headers: dict[str, str] | None, reply: str = ""
) -> None:
    """Refuse what would cost us the connection: the server closes it on what is too large. Raises TooLarge."""
    try:
        line = len(subject.encode()) + (len(reply.encode()) if reply else INBOX)
        block = 0
        if headers is not None:
            block = 12 + sum(len(k.encode()) + len(v.encode()) + 4 for k, v in headers.items())
    except UnicodeEncodeError:
        raise TooLarge(f"{subject[:80]!a}: the subject or a header cannot be written as UTF-8") from None
    size = len(payload) + block
    if size > client.max_payload:
        raise TooLarge(f"{subject[:80]}: {size} bytes are more than the server's max_payload of {client.max_payload}")
    if line > CONTROL_LINE:
        raise TooLarge(f"{subject[:80]}...: a subject of {line} bytes is too long")


async def discard(client: PatchedClient, seconds: float = 1.0) -> None:
    """Close a client for good. It may hang or raise in many ways, and none of them matters any more."""
    task = asyncio.ensure_future(client.close())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
        client.abandon()


def credentials(nats: Nats) -> dict[str, Any]:
    """What to prove who we are with, read now. Raises BadCredentials for a file that cannot be used."""
    found: dict[str, Any] = {}
    if nats.credentials_file:
        # Text, not the path: nats-py loops for ever on an empty or truncated file.
        text = _read(nats.credentials_file)
        token, seed = _line_after(text, "BEGIN NATS USER JWT"), _line_after(text, "BEGIN USER NKEY SEED")
        if token.count(".") != 2 or not seed:
            raise BadCredentials(f"{nats.credentials_file}: no user JWT with its seed in it")
        _check_seed(nats.credentials_file, seed)
        found["user_credentials"] = RawCredentials(text + "\n")  # nats-py cuts the last byte of the line, come what may
    if nats.nkey_seed_file:
        found["nkeys_seed_str"] = _check_seed(nats.nkey_seed_file, _read(nats.nkey_seed_file).strip())
    elif nats.nkey_seed:
        found["nkeys_seed_str"] = _check_seed("nkey_seed", nats.nkey_seed.reveal().strip())
    if nats.user:
        found["user"] = nats.user
        found["password"] = _secret(nats.password_file, nats.password)
    if nats.token or nats.token_file:
        found["token"] = _secret(nats.token_file, nats.token)
    if nats.tls.ca_file or nats.tls.cert_file or any(s.startswith(("tls://", "wss://")) for s in nats.servers):
        found["tls"] = _tls(nats.tls)
    return found


def _secret(path: str | None, secret: Secret | None) -> str | None:
    if path:
        return _read(path).strip()
    return secret.reveal() if secret else None


def _tls(files: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=files.ca_file)
        if files.cert_file:
            context.load_cert_chain(files.cert_file, files.key_file)
    except (OSError, ssl.SSLError) as error:
        paths = ", ".join(path for path in (files.ca_file, files.cert_file, files.key_file) if path)
        raise BadCredentials(f"TLS files {paths}: {_said(error)}") from None
    return context


def _read(path: str) -> str:
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadCredentials(f"{path}: {_said(error)}") from None
    if not text.strip():
        raise BadCredentials(f"{path}: it is empty")
    return text


def _line_after(text: str, mark: str) -> str:
    """The line after the one that holds `mark`, or nothing."""
    lines = iter(text.splitlines())
    return next(lines, "") if any(mark in line for line in lines) else ""


def _check_seed(where: str, seed: str) -> str:
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception:  # by whatever name nkeys or nacl refuse it; their texts would not say where
        raise BadCredentials(f"{where}: its nkey seed is damaged or cut short") from None
    return seed


def _said(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
