"""The state bucket, followed for as long as it takes.

Not nats-py's KV watcher: after the bucket was made anew that one is blind without an error, and after a restart it is
late. Here an ephemeral consumer of our own reads every state and then whatever changes; a missed idle heartbeat, a gap
in its sequence, a reconnect, or a sidecar that falls silent ends it, and the next one begins with every state again.
"""

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
from nats_backpressure.client.values import read
from nats_backpressure.protocol.subjects import Names

IDLE = 1.0
"""Seconds after which the server says that there is nothing to say."""
SILENCE = 2.5
"""Seconds without a word from the server after which the watch counts as lost."""
OPEN_WITHIN = 3.0
"""Seconds for each step of beginning a watch."""
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds before the next watch, growing, with jitter: many gateways come back at once."""
FIRST_DOUBT, LAST_DOUBT = 10.0, 60.0
"""Seconds a watch is kept while no heartbeat comes, growing; another one would most likely hear no more."""
LINK_POLL = 0.1
"""Seconds between looks at a connection that is away."""
QUEUED = 65_536
"""Messages waiting to be taken in; one more is dropped, which shows as a gap."""
LINGER = 10_000_000_000
"""Nanoseconds after which the server removes a consumer nobody listens to any more."""


class WatchLost(Exception):
    """The watch is over; the text says why."""


class WatchAgain(WatchLost):
    """The watch is given up though nothing is wrong with it."""


class _Error(Struct, frozen=True):
    err_code: int = 0
    description: str = ""


class _Delivered(Struct, frozen=True):
    consumer_seq: int = 0


class _ConsumerCreated(Struct, frozen=True):
    """The server's answer to the creation of a consumer; `created` is its own time then."""

    error: _Error | None = None
    created: datetime | None = None
    num_pending: int = 0
    delivered: _Delivered = _Delivered()


class StateWatch:
    """Keeps `picture` true; `ready` is set once it was whole for the first time."""

    def __init__(
        self, nc: Client, names: Names, api_prefix: str, picture: StateMirror, stats: Stats, voice: OnceLogger
    ) -> None:
        self.nc, self.picture, self.stats, self.voice = nc, picture, stats, voice
        self._bucket, self._api = names.state_bucket, api_prefix
        self.prefix = f"$KV.{names.state_bucket}."
        self.whole = False
        """Whether the present watch has read every state."""
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        self.doubt = FIRST_DOUBT
        self.ready = asyncio.Event()

    def reopen(self) -> None:
        """Read every state again: there is more to be interested in."""
        self.ready.clear()
        with suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)

    async def run(self) -> None:
        """Until cancelled."""
        delay = FIRST_RETRY
        while True:
            if not self.nc.is_connected:
                self._say("the connection to NATS is away")
                await asyncio.sleep(LINK_POLL)
                continue
            self.whole, began = False, time.monotonic()
            try:
                await self._follow()
            except WatchAgain:
                continue
            except Exception as error:  # a client that closes under it makes nats-py raise many things
                self.stats.count("watch_lost")
                self._say(str(error) or type(error).__name__)
            lasted = self.whole and time.monotonic() - began >= LAST_RETRY
            delay = FIRST_RETRY if lasted else min(delay * 2, LAST_RETRY)
            await asyncio.sleep(random.uniform(0.3, 1.0) * delay)

    async def _follow(self) -> None:
        """One watch from beginning to end. Raises what ended it."""
        queue = self._queue = asyncio.Queue(maxsize=QUEUED)

        async def heard(message: Msg) -> None:
            with suppress(asyncio.QueueFull):
                queue.put_nowait(message)

        inbox = self.nc.new_inbox()
        async with asyncio.timeout(OPEN_WITHIN):
            subscription = await self.nc.subscribe(inbox, cb=heard)
        try:
            sent = time.monotonic()
            made = await self._create(inbox)
            await _Reading(self, made, sent, queue).go_on()
        finally:
            with suppress(Exception):  # without interest the server takes the consumer down by itself
                async with asyncio.timeout(OPEN_WITHIN):
                    await subscription.unsubscribe()

    async def _create(self, inbox: str) -> _ConsumerCreated:
        name = secrets.token_hex(8)
        config: dict[str, Any] = {
            "name": name,
            "deliver_subject": inbox,
            "deliver_policy": "last_per_subject",
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": LINGER,
            "idle_heartbeat": int(IDLE * 1e9),
            "filter_subject": f"{self.prefix}>",
        }
        stream = f"KV_{self._bucket}"
        body = msgspec.json.encode({"stream_name": stream, "config": config})
        async with asyncio.timeout(OPEN_WITHIN):
            reply = await self.nc.request(f"{self._api}.CONSUMER.CREATE.{stream}.{name}", body, timeout=OPEN_WITHIN)
        made = read(reply.data, _ConsumerCreated)
        if made is None:
            raise WatchLost("the server's answer cannot be read")
        if made.error is not None:
            raise WatchLost(f"bucket {self._bucket}: {made.error.description[:200]}")
        return made

    def _say(self, why: str) -> None:
        self.voice.say("watch", "", f"the watch of the backpressure states is lost, and is tried again: {why}")


class _Reading:
    """One consumer's messages, in order and without a gap."""

    def __init__(
        self, watch: StateWatch, made: _ConsumerCreated, sent: float, queue: asyncio.Queue[Msg | None]
    ) -> None:
        self._watch, self._queue, self._began = watch, queue, sent
        self._picture = watch.picture
        self._created = made.created.timestamp() if made.created else None
        self._left = made.num_pending + made.delivered.consumer_seq
        self._count = 0
        self._snapshot = True
        self._reconnects = watch.nc.stats["reconnects"]

    async def go_on(self) -> None:
        """Raises Lost in the end."""
        self._picture.begin()
        if not self._left:
            self._complete()
        while True:
            message = await self._next()
            if self._watch.nc.stats["reconnects"] != self._reconnects:
                raise WatchLost("the connection was another one in between")
            if not message.reply.startswith("$JS.ACK."):
                self._heartbeat(message)
            else:
                self._take(message)
            self._question()

    async def _next(self) -> Msg:
        try:
            async with asyncio.timeout(SILENCE):
                message = await self._queue.get()
        except TimeoutError:
            raise WatchLost(f"no word from the server for {SILENCE} s") from None
        if message is None:
            raise WatchAgain("there is more to watch")
        return message

    def _take(self, message: Msg) -> None:
        metadata = message.metadata
        self._count += 1
        if metadata.sequence.consumer != self._count:
            raise WatchLost("a state was lost on the way")
        now, stamp = time.monotonic(), metadata.timestamp.timestamp()
        # How old a state of the snapshot is, by the server's clock alone; what comes live was written just now.
        age = max(0.0, (self._created or time.time()) - stamp)
        written = self._began - age if self._snapshot else now
        key = message.subject.removeprefix(self._watch.prefix)
        headers = message.headers or {}
        if headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers:
            self._picture.delete(key)
        elif wrong := self._picture.put(key, message.data, written, stamp):
            self._watch.stats.count(wrong, key)
            self._watch.voice.say(wrong, key, f"{key} in the state bucket: {wrong}, treated as if it were not there")
        if self._snapshot and metadata.num_pending == 0:
            self._complete()

    def _heartbeat(self, message: Msg) -> None:
        """The server has nothing to send: then everything sent must be here."""
        headers = message.headers or {}
        if (status := headers.get("Status")) is None:
            return  # not the server's
        if status != "100":
            raise WatchLost(f"the server ended it: {headers.get('Description', '')[:200]}")
        if headers.get("Nats-Last-Consumer", str(self._count)) != str(self._count):
            raise WatchLost("a state was lost on the way")
        if self._snapshot:
            self._complete()

    def _complete(self) -> None:
        self._snapshot = False
        self._picture.complete(time.monotonic())
        watch = self._watch
        watch.whole = True
        watch.stats.count("snapshots")
        watch.voice.over("watch", "", "the backpressure states are watched again")
        watch.ready.set()

    def _question(self) -> None:
        """The link is well and no heartbeat comes: see by another watch whether it is us, ever more rarely."""
        now = time.monotonic()
        watch = self._watch
        if not self._picture.blind(now):
            watch.doubt = FIRST_DOUBT
            watch.voice.over("heartbeats", "", "the backpressure sidecar's heartbeats are back")
            return
        watch.voice.say("heartbeats", "", "the backpressure sidecar's heartbeats have stopped: its states grow old")
        if not self._snapshot and now - self._began >= watch.doubt:
            watch.doubt = min(2 * watch.doubt, LAST_DOUBT)
            raise WatchAgain("the sidecar's heartbeats have stopped")
