"""Follows one of our own streams: each message that is stored there, in order, as soon as it is stored.

A consumer that ends by itself delivers it, on pulls that wait long: no request while nothing is stored, but one pull
every EXPIRES seconds or BATCH messages. The list of streams, which is read anyway, shows whether something is missing.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.adapters.nats.api_types import StreamInfo
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.tasks import Once, Slices, backoff, raise_if_cancelled

log = structlog.get_logger()

BATCH, EXPIRES = 100, 30.0
"""Messages and seconds of one pull: a message has at most a MiB, and what has arrived waits in memory."""
LATE = 2.0
"""Seconds beyond EXPIRES after which a pull that did not end is lost."""
BEHIND = 0.3
"""Seconds after which what the list of streams showed must have arrived."""
INACTIVE = 120
"""Seconds after which the server removes a consumer that is no longer pulled from."""
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds before the next consumer, doubling with jitter; one that lived for LAST_RETRY resets them."""
LOGGED_AT = 5
"""The try at which a stream that cannot be followed is logged as a warning."""
OWN_LIMIT = 10_000
"""Own writes that may wait until what was stored before them has arrived; beyond, they are received as any other."""
ENDED = frozenset({"404", "408"})
"""The status with which the server ends a pull in time."""

Info = StreamInfo[dict[str, Any]]


class StreamFollower:
    """Calls `take` with each message. Everything up to the sequence `reached` is accounted for: it was received, read,
    or written by ourselves.

    `read_all` is called first, and whenever the connection is another one, or the stream is another or shows less than
    before: it accounts for all that is stored, and returns up to which sequence."""

    def __init__(
        self,
        js: JetStreamApi,
        client: Callable[[], Client],
        clock: Clock,
        stream: str,
        pattern: str,
        take: Callable[[Message], None],
        read_all: Callable[[Info], Awaitable[int]],
    ) -> None:
        self.stream, self.reached, self.created = stream, 0, ""
        self._seen = 0
        """Up to which sequence everything was received, read or written by ourselves. `reached` may be ahead: the node
        of the consumer may lag behind the stream, and deliver late what it seems not to have."""
        self._js, self._client, self._clock, self._pattern = js, client, clock, pattern
        self._take, self._read_all = take, read_all
        self._read_on: Client | None = None
        """The connection on which everything was read; None where it must be read again."""
        self._own: set[int] = set()
        """Sequences above `_seen` that we wrote ourselves."""
        self._listed = 0
        """What was accounted for when the last list of streams came: the next one shows no less."""
        self._target, self._target_at = 0, math.inf
        """A sequence that a list has shown, and the monotonic time by which it must be reached."""
        self._received: deque[Msg] = deque(maxlen=2 * BATCH)
        self._woken = asyncio.Event()
        self._logged = Once()

    def continue_from(self, created: str, reached: int, client: Client) -> None:
        """Everything up to a sequence was read on this connection: follow from there."""
        self.created, self.reached, self._seen, self._read_on = created, reached, reached, client
        self._own.clear()
        self._listed = 0

    def wrote(self, seq: int) -> None:
        """We stored a message ourselves: it needs not be received."""
        if seq <= self._seen or len(self._own) >= OWN_LIMIT:
            return
        self._own.add(seq)
        while self.reached + 1 in self._own:
            self.reached += 1
        while self._seen + 1 in self._own:
            self._seen += 1
            self._own.discard(self._seen)
        self.reached = max(self.reached, self._seen)

    def read_again(self) -> None:
        """Read all that is stored again, soon."""
        self._read_on = None
        self._woken.set()

    def take_look(self, look: StreamLook) -> None:
        """A list of streams was read just now."""
        if not self.created:
            return
        if look.created != self.created or look.last_seq < self._listed or self._is_reconnected():
            self.read_again()
        elif look.last_seq > self.reached and self._target_at == math.inf:
            self._target, self._target_at = look.last_seq, self._clock.now().mono + BEHIND
            self._woken.set()
        self._listed = self.reached

    def _is_reconnected(self) -> bool:
        try:
            return self._client() is not self._read_on
        except Unavailable:
            return False

    async def run(self) -> None:
        """Follow until cancelled."""
        delays, tries = backoff(self._clock, FIRST_RETRY, LAST_RETRY), 0
        while True:
            raise_if_cancelled()
            started, tries = self._clock.now().mono, tries + 1
            try:
                await self._follow()
            except (Unavailable, TimeoutError, nats.errors.Error) as error:
                report = log.warning if tries == LOGGED_AT else log.debug
                hint = "what other replicas store is seen late; check the rights to create consumers and to pull"
                report("stream.not_followed", stream=self.stream, error=str(error), hint=hint)
            if self._clock.now().mono - started >= LAST_RETRY:
                delays, tries = backoff(self._clock, FIRST_RETRY, LAST_RETRY), 0
            await self._clock.sleep(next(delays))

    async def _follow(self) -> None:
        """The life of one consumer; returns when another one is needed."""
        client, info = self._client(), await self._js.stream(self.stream)
        if info is None:
            raise Unavailable(f"there is no stream {self.stream}")
        last = info.state.last_seq
        if client is not self._read_on or info.created != self.created or last < self.reached:
            reached = await self._read_all(info)
            self.continue_from(info.created, reached, client)
        self._target_at = math.inf
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": self._seen + 1}
        name, consumer = await self._js.create_consumer(
            self.stream, self._pattern, **start, inactive_threshold=INACTIVE * 1_000_000_000
        )
        if not consumer.num_pending:  # what it will not deliver is gone
            self.reached = max(self.reached, last)
        pulls = _Pulls(client, client.new_inbox(), f"{self._js.prefix}.CONSUMER.MSG.NEXT.{self.stream}.{name}", last)
        self._received.clear()
        subscription = await client.subscribe(pulls.inbox, cb=self._receive)
        try:
            while client.is_connected and await self._pull(pulls):
                pass
        finally:
            with suppress(Exception):
                await subscription.unsubscribe()
                await client.publish(f"{self._js.prefix}.CONSUMER.DELETE.{self.stream}.{name}")

    async def _receive(self, message: Msg) -> None:
        self._received.append(message)
        self._woken.set()

    async def _pull(self, pulls: _Pulls) -> bool:
        """One pull; returns whether it ended in time, with nothing missing."""
        await pulls.ask()
        left, ends_at, slices = BATCH, self._clock.now().mono + EXPIRES + LATE, Slices(self._clock)
        while left > 0:
            if not self._received:
                self._woken.clear()
                await self._clock.wait(self._woken, min(ends_at, self._target_at) - self._clock.now().mono)
                raise_if_cancelled()
            while self._received:
                raw = self._received.popleft()
                if raw.subject == pulls.inbox:  # nothing that is stored: the server says how it goes on
                    return (raw.headers or {}).get("Status") in ENDED
                if not self._arrived(raw, pulls):
                    return False
                left -= 1
                await slices.pause()
            if self._read_on is not pulls.client or self._is_late(ends_at):
                return False
        return True

    def _arrived(self, raw: Msg, pulls: _Pulls) -> bool:
        """Take a message; returns False where one before it is missing."""
        about, pulls.count = raw.metadata, pulls.count + 1
        if about.sequence.consumer != pulls.count:
            return False
        seq = about.sequence.stream
        if seq > self._seen:
            own, self._seen = seq in self._own, seq
            self.reached = max(self.reached, seq)
            self._own = {one for one in self._own if one > seq}
            if not own:
                self._take(Message(raw.subject, seq, raw.data, dict(raw.headers or {}), about.timestamp.timestamp()))
        if not about.num_pending:
            self.reached = max(self.reached, pulls.last)
        return True

    def _is_late(self, ends_at: float) -> bool:
        """Whether something should have arrived."""
        if self.reached >= self._target:
            self._target_at = math.inf
        now = self._clock.now().mono
        return now >= ends_at or now >= self._target_at


class _Pulls:
    """The pulls of one consumer. `last`: the last sequence that the stream had before it."""

    def __init__(self, client: Client, inbox: str, subject: str, last: int) -> None:
        self.client, self.inbox, self.last = client, inbox, last
        self.count = 0
        """Messages it has delivered."""
        self._subject, self._payload = subject, msgspec.json.encode({"batch": BATCH, "expires": int(EXPIRES * 1e9)})

    async def ask(self) -> None:
        await self.client.publish(self._subject, self._payload, reply=self.inbox)
