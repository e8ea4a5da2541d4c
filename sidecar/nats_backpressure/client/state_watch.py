"""Follows the state bucket: reads every state, then each change, and starts again after any loss.

It uses an ephemeral consumer of our own, not nats-py's KV watcher: after the bucket was deleted and created again, that
one receives nothing and reports no error, and after a restart of the server it is late. A missed idle heartbeat, a gap
in its sequence, a reconnect, or missing heartbeats of the sidecar end it, and the next one reads every state again."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.protocol.subjects import Names

IDLE_HEARTBEAT = 1.0
"""Seconds without a message after which the server sends an idle heartbeat."""
SILENCE_LIMIT = 2.5
"""Seconds without anything from the server after which the watch counts as lost."""
STEP_TIMEOUT = 3.0
"""Seconds for each step of starting a watch."""
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds before the next watch, growing, with jitter: many gateways come back at once."""
FIRST_REOPEN, LAST_REOPEN = 10.0, 60.0
"""Seconds after which a watch without the sidecar's heartbeats is opened again, growing: most likely the sidecar is
away, and the next watch will receive no more than this one."""
LINK_POLL = 0.1
"""Seconds between two looks at a connection that is down."""
MAX_QUEUED = 65_536
"""Messages waiting to be processed; a further one is dropped, which shows as a gap."""
INACTIVE_THRESHOLD = 10.0
"""Seconds after which the server removes a consumer without a subscriber."""


class WatchLost(Exception):
    """The watch ended; the text says why."""


class WatchRestart(WatchLost):
    """The watch is replaced by another one though nothing is wrong with it."""


class _Error(Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Delivered(Struct, frozen=True):
    consumer_seq: int = 0


class _ConsumerCreated(Struct, frozen=True):
    """The server's reply to CONSUMER.CREATE; `created` is the server's own time."""

    error: _Error | None = None
    created: datetime | None = None
    num_pending: int = 0
    delivered: _Delivered = _Delivered()


class StateWatch:
    """Keeps `mirror` equal to the bucket; `ready` is set once every state was read."""

    def __init__(
        self,
        nc: Client,
        names: Names,
        api_prefix: str,
        mirror: StateMirror,
        stats: Stats,
        logger: OnceLogger,
        *,
        first_reopen: float = FIRST_REOPEN,
        inactive_threshold: float = INACTIVE_THRESHOLD,
    ) -> None:
        self.nc, self.mirror, self.stats, self.logger = nc, mirror, stats, logger
        self._bucket, self._api, self._inactive_threshold = names.state_bucket, api_prefix, inactive_threshold
        self.prefix = f"$KV.{names.state_bucket}."
        self.complete = False
        """Whether the present watch has read every state."""
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._first_reopen = self.reopen_after = first_reopen
        self.ready = asyncio.Event()

    def restart(self) -> None:
        """Read every state again: the filter has grown."""
        self.ready.clear()
        with suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)

    def heartbeats_came(self) -> None:
        self.reopen_after = self._first_reopen

    async def run(self) -> None:
        """Until cancelled."""
        delay = FIRST_RETRY
        while True:
            if not self.nc.is_connected:
                self._warn("not connected to NATS")
                await asyncio.sleep(LINK_POLL)
                continue
            self.complete, began = False, time.monotonic()
            try:
                await self._follow()
            except WatchRestart:
                continue
            except Exception as error:  # a client that closes meanwhile makes nats-py raise many things
                self.stats.count("watch_lost")
                self._warn(str(error) or type(error).__name__)
            lasted = self.complete and time.monotonic() - began >= LAST_RETRY
            delay = FIRST_RETRY if lasted else min(delay * 2, LAST_RETRY)
            await asyncio.sleep(random.uniform(0.3, 1.0) * delay)

    async def _follow(self) -> None:
        """One watch from start to end. Raises what ended it."""
        queue = self._queue = asyncio.Queue(maxsize=MAX_QUEUED)

        async def enqueue(message: Msg) -> None:
            with suppress(asyncio.QueueFull):
                queue.put_nowait(message)

        inbox = self.nc.new_inbox()
        async with asyncio.timeout(STEP_TIMEOUT):
            subscription = await self.nc.subscribe(inbox, cb=enqueue)
        try:
            requested_at = time.monotonic()
            created = await self._create_consumer(inbox)
            await _ConsumerReader(self, created, requested_at, queue).run()
        finally:
            with suppress(Exception):  # without a subscriber the server removes the consumer by itself
                async with asyncio.timeout(STEP_TIMEOUT):
                    await subscription.unsubscribe()

    async def _create_consumer(self, inbox: str) -> _ConsumerCreated:
        name = secrets.token_hex(8)
        config: dict[str, Any] = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(self._inactive_threshold * 1e9),
            "idle_heartbeat": int(IDLE_HEARTBEAT * 1e9),
            "filter_subject": f"{self.prefix}>",
        }
        stream = f"KV_{self._bucket}"
        body = msgspec.json.encode({"stream_name": stream, "config": config})
        async with asyncio.timeout(STEP_TIMEOUT):
            reply = await self.nc.request(f"{self._api}.CONSUMER.CREATE.{stream}.{name}", body, timeout=STEP_TIMEOUT)
        created = read_message(reply.data, _ConsumerCreated)
        if created is None:
            raise WatchLost("the server's reply to CONSUMER.CREATE cannot be decoded")
        if created.error is not None:
            raise WatchLost(f"bucket {self._bucket}: {created.error.description[:200]}")
        return created

    def _warn(self, why: str) -> None:
        self.logger.warn("watch", "", f"the watch of the backpressure states is lost, retrying: {why}")


class _ConsumerReader:
    """The messages of one consumer, in order and without a gap."""

    def __init__(
        self, watch: StateWatch, created: _ConsumerCreated, requested_at: float, queue: asyncio.Queue[Msg | None]
    ) -> None:
        self._watch, self._queue, self._requested_at = watch, queue, requested_at
        self._mirror = watch.mirror
        self._created = created.created.timestamp() if created.created else None
        self._states = created.num_pending + created.delivered.consumer_seq
        self._received = 0
        self._in_snapshot = True
        self._reconnects = watch.nc.stats["reconnects"]

    async def run(self) -> None:
        """Ends by raising WatchLost."""
        self._mirror.begin_snapshot()
        if not self._states:
            self._end_snapshot()
        while True:
            message = await self._next()
            if self._watch.nc.stats["reconnects"] != self._reconnects:
                raise WatchLost("the connection was replaced in between")
            if not message.reply.startswith("$JS.ACK."):
                self._check_idle_heartbeat(message)
            else:
                self._store(message)
            self._check_heartbeats()

    async def _next(self) -> Msg:
        try:
            async with asyncio.timeout(SILENCE_LIMIT):
                message = await self._queue.get()
        except TimeoutError:
            raise WatchLost(f"nothing from the server for {SILENCE_LIMIT} s") from None
        if message is None:
            raise WatchRestart("the filter has grown")
        return message

    def _store(self, message: Msg) -> None:
        metadata = message.metadata
        self._received += 1
        if metadata.sequence.consumer != self._received:
            raise WatchLost("a message was lost on the way")
        now, stamp = time.monotonic(), metadata.timestamp.timestamp()
        # The age of a state of the snapshot is by the server's clock alone; a live one was written just now.
        age = max(0.0, (self._created or time.time()) - stamp)
        written = self._requested_at - age if self._in_snapshot else now
        key = message.subject.removeprefix(self._watch.prefix)
        headers = message.headers or {}
        if headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers:
            self._mirror.delete(key)
        elif problem := self._mirror.put(key, message.data, written, stamp):
            self._watch.stats.count(problem, key)
            self._watch.logger.warn(problem, key, f"key {key} of the state bucket is ignored: {problem}")
        if self._in_snapshot and metadata.num_pending == 0:
            self._end_snapshot()

    def _check_idle_heartbeat(self, message: Msg) -> None:
        """The server has nothing to send: then everything it sent must be here."""
        headers = message.headers or {}
        if (status := headers.get("Status")) is None:
            return  # not from the server
        if status != "100":
            raise WatchLost(f"the server ended it: {headers.get('Description', '')[:200]}")
        if headers.get("Nats-Last-Consumer", str(self._received)) != str(self._received):
            raise WatchLost("a message was lost on the way")
        if self._in_snapshot:
            self._end_snapshot()

    def _end_snapshot(self) -> None:
        self._in_snapshot = False
        self._mirror.end_snapshot(time.monotonic())
        watch = self._watch
        watch.complete = True
        watch.stats.count("snapshots")
        watch.logger.resolve("watch", "", "the backpressure states are watched again")
        watch.ready.set()

    def _check_heartbeats(self) -> None:
        """The server answers but the sidecar's heartbeats are missing: another watch shows whether the fault is ours,
        each time later."""
        now = time.monotonic()
        watch = self._watch
        if not self._mirror.heartbeats_missing(now):
            watch.heartbeats_came()
            watch.logger.resolve("heartbeats", "", "the backpressure sidecar's heartbeats are back")
            return
        watch.logger.warn("heartbeats", "", "the backpressure sidecar's heartbeats are missing: its states grow old")
        if not self._in_snapshot and now - self._requested_at >= watch.reopen_after:
            watch.reopen_after = min(2 * watch.reopen_after, LAST_REOPEN)
            raise WatchRestart("the sidecar's heartbeats are missing")
