"""nats-py's client with patches: no message ends its read loop, it sends nothing too large, and it always closes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from math import ceil
from typing import Any

import nats.errors
from nats.aio.client import Client as NatsClient
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.protocol import parser

from nats_backpressure.adapters.nats.credentials import credentials, explain
from nats_backpressure.adapters.nats.denied_rights import DeniedRights, denial
from nats_backpressure.adapters.nats.direct_replies import DirectReplies
from nats_backpressure.adapters.nats.direct_requests import DirectRequests
from nats_backpressure.config.nats import Nats
from nats_backpressure.runtime.ports import TooLarge

CONTROL_LINE, INBOX = 4000, 200
"""Bytes of subject and reply, and of a request's own inbox; with the lengths, the server closes at 4,096."""
UNSENT = 2 * 1024 * 1024
"""Bytes that may wait to be sent."""
USUAL = re.compile(r"[!-~]{1,1000}")
"""Subjects that need no further check."""

# nats-py (2.16) ends the connection at a subject with a vertical tab or a form feed, which its expressions take for the
# space between two tokens. For the server only these end a token: space, tab, CR and LF.
parser.MSG_RE = re.compile(rb"\AMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)\r\n")
parser.HMSG_RE = re.compile(
    rb"\AHMSG[ \t]+([^ \t\r\n]+)[ \t]+([^ \t\r\n]+)[ \t]+(([^ \t\r\n]+)[ \t]+)?(\d+)[ \t]+(\d+)\r\n"
)


class NoTls(nats.errors.Error):
    """The server does not offer the TLS that is asked for."""


class PatchedClient(NatsClient):
    """nats-py's client without the ways in which a peer could stop it; it records when and why it ended."""

    def __init__(self, may_publish: Callable[[str], bool] | None, note: Callable[[str, str], None]) -> None:
        """Publishes only to subjects for which `may_publish` is true; `note` gets each error's kind and text."""
        super().__init__()
        self._may_publish, self._note = may_publish, note
        self.direct, self.requests = DirectReplies(self), DirectRequests(self)
        self.ended = asyncio.Event()  # one per client: a late callback of one client must not end the next
        self.because = ""
        """The text of the last error."""
        self.rights = DeniedRights(self)
        self._spelt = ""
        """The last error line of the server, in its own spelling."""
        self._needs_tls = False

    async def open(self, nats: Nats, name: str, seconds: float, **more: Any) -> None:
        """Connect, without nats-py's own reconnect. Raises BadCredentials, and anything that nats-py raises."""
        login = credentials(nats)
        self._needs_tls = "tls" in login
        await self.connect(
            servers=list(nats.servers),
            name=name,
            allow_reconnect=False,
            # While connecting nats-py retries by itself: each server once or twice, without a pause.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=ceil(seconds),
            flush_timeout=seconds,
            pending_size=UNSENT,
            inbox_prefix=nats.inbox_prefix,
            error_cb=self.on_error,
            closed_cb=self.on_end,
            disconnected_cb=self.on_end,
            **login,
            **more,
        )

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # nats-py uses TLS only where the server requires it, not where it offers it.
        if initial_connection and self._needs_tls and info.get("tls_available"):
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        # What it returns is sent next, and may hold a password.
        if self._needs_tls and not self._server_info.get("tls_required"):
            raise NoTls("the server offers no TLS, which a tls:// URL or nats.tls asks for; no login was sent to it")
        return super()._connect_command()

    async def _process_err(self, err_msg: str) -> None:
        # nats-py passes the text in lower case, in which no subject can be used; the line is still in its buffer.
        line = parser.ERR_RE.match(self._ps.buf)
        self._spelt = line[1].decode(errors="replace").strip("'") if line and line[1] else err_msg
        self.because = self._spelt
        await super()._process_err(err_msg)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if self.direct.reply(sid, subject, reply, data):
            if self.direct.pause_due:
                await asyncio.sleep(0)
            return
        if self.requests.take(sid, subject, data, headers):
            if self.requests.pause_due:
                await asyncio.sleep(0)
            return
        # An exception here would end the read loop and leave a client that only looks connected (nats.py PR 914).
        # Any peer can cause one: UnicodeDecodeError by its subject, IndexError by a header block without a line end.
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except Exception as error:
            self._note("undecodable_message", type(error).__name__)
        else:
            return
        # It raised before any subscription got the message. Passed on without headers and with U+FFFD in its subject,
        # the subscriber refuses it, and what a consumer delivers has no gap.
        with suppress(Exception):
            await super()._process_msg(sid, subject.decode(errors="replace").encode(), reply, data, b"")

    async def _process_pong(self) -> None:
        # A late PONG meets a future that its waiter has cancelled (`flush`, `rtt`); setting it would end the read loop.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    @property
    def was_answered(self) -> bool:
        """Whether a server sent anything since it was opened."""
        return bool(self._server_info)

    @property
    def publishes_freely(self) -> bool:
        """Whether it may publish to any subject."""
        return self._may_publish is None

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        if self._may_publish is not None and not self._may_publish(subject):
            self._note("reply_subject", "")
            return
        check_size(self, subject, payload, headers, reply)
        await super().publish(subject, payload, reply, headers)

    @property
    def bytes_waiting(self) -> int:
        """Bytes that wait at the socket."""
        socket = self._transport._io_writer if isinstance(self._transport, TcpTransport) else None
        return 0 if socket is None else socket.transport.get_write_buffer_size()

    def write_at_once(self, subject: str, payload: bytes, reply: str = "", most_waiting: int = 0) -> bool:
        """Write a message to the socket, without the task that nats-py has for that, before all that waits for it.
        False where anything is unusual, or more than `most_waiting` bytes wait at the socket: nothing is sent then."""
        if self._status != NatsClient.CONNECTED or not self.publishes_freely:
            return False
        if len(payload) > self.max_payload or not USUAL.fullmatch(subject) or self.rights.denies(subject):
            return False
        size = len(payload)
        if not self.write_command(
            b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), size, payload), most_waiting
        ):
            return False
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += size
        return True

    def write_command(self, command: bytes, most_waiting: int = 0) -> bool:
        """Write a command to the socket, before all that waits for nats-py's task. False where more than `most_waiting`
        bytes wait at the socket, or there is none: nothing is sent then."""
        socket = self._transport._io_writer if isinstance(self._transport, TcpTransport) else None
        if socket is None or socket.transport.is_closing() or self.bytes_waiting > most_waiting:
            return False
        socket.write(command)
        return True

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: dict[str, str] | None = None,
    ) -> Msg:
        if (denied := self.rights.denies(subject)) is not None:
            raise denied
        return await self.requests.send(subject, payload, headers, timeout)

    async def on_error(self, error: Exception) -> None:
        # Must never raise: an exception here ends nats-py's read loop.
        self.because = explain(error)
        if self.because == f"nats: {self._spelt.lower()}":
            self.because = self._spelt
        if (denied := denial(self.because)) is not None:
            with suppress(Exception):
                self.rights.add(denied, self.because)
            self._note("permission_denied", self.because)
        else:
            slow = isinstance(error, nats.errors.SlowConsumerError)
            self._note("slow_consumer" if slow else "nats_error", self.because)

    async def on_end(self) -> None:
        self.ended.set()
        self.requests.end_all()

    def abandon(self) -> None:
        """Release what nats-py's own close leaves behind where it fails or hangs: tasks, and the socket."""
        ours = (self._reading_task, self._ping_interval_task, self._flusher_task, self._reconnection_task)
        for task in (*ours, *(subscription._wait_for_msgs_task for subscription in self._subs.values())):
            if task is not None and not task.done():
                task.cancel()
        self._subs.clear()
        if (writer := getattr(self._transport, "_io_writer", None)) is not None:
            # Not close(): that waits until the server, which may have stopped forever, has read what is unsent.
            with suppress(Exception):
                writer.transport.abort()


def check_size(
    client: NatsClient, subject: str, payload: bytes, headers: dict[str, str] | None, reply: str = ""
) -> None:
    """Refuse what is too large: the server would close the connection. Raises TooLarge."""
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
    """Close a client permanently, within `seconds`. Its close may hang or raise in many ways; none matters now."""
    client.requests.end_all()
    task = asyncio.ensure_future(client.close())
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
        client.abandon()


async def settled(client: NatsClient) -> None:
    """Return once the server has read all that was sent. nats-py's `flush` alone does not wait for that: it writes its
    PING at once, before the commands that still wait to be written."""
    if client.is_connected:
        await client._flush_pending(force_flush=True)
    await client.flush()
