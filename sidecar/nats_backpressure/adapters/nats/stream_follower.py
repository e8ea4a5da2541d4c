"""Follows one of our own streams: each message that is stored there, in order, as soon as it is stored.

A consumer that ends by itself delivers it, on pulls that wait long: no request while nothing is stored, but one pull
every EXPIRES seconds or BATCH messages. The list of streams, which is read anyway, shows whether something is missing.
Where no consumer works (a right is missing), what the list shows is read by a request for each message.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api import JetStreamApi, Message, is_leaderless
from nats_backpressure.adapters.nats.api_types import StreamInfo
from nats_backpressure.adapters.nats.remedies import remedy_of_code
from nats_backpressure.adapters.nats.stream_position import StreamPosition
from nats_backpressure.adapters.nats.stream_pulls import StreamPulls
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.tasks import backoff, raise_if_cancelled

log = structlog.get_logger()

BATCH, EXPIRES = 100, 30.0
"""Messages and seconds of one pull: a message has at most a MiB, and what has arrived waits in memory."""
LATE = 2.0
"""Seconds beyond EXPIRES after which a pull that did not end is lost."""
BEHIND = 0.3
"""Seconds after which what the list of streams showed must have arrived."""
INACTIVE = 120
"""Seconds after which the server removes a consumer that is no longer pulled from."""
FIRST_RETRY, LAST_RETRY, LIVED = 0.1, 5.0, 2.0
"""Seconds before the next consumer, doubling with jitter; one that lived for LIVED resets them."""
LOGGED_AT, RARELY = 5, 30.0
"""The failed try at which it is logged as a warning, and seconds before the next one from then on."""
SINGLY = 1000
"""Messages at the end of another stream that are read by a request each."""
TRIES = 2
"""Failed tries on one connection after which what is stored there counts as current: a right may be missing."""

Info = StreamInfo[dict[str, Any]]


class StreamFollower:
    """Calls `take` with each message that we did not write ourselves.

    `read_all` is called first, and whenever the connection is another one, or the stream is another or an older one,
    as `position.is_other` says, or may be, since the consumer is gone: it accounts for all that is stored, and returns
    up to which sequence."""

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
        self.stream, self.position = stream, StreamPosition(clock)
        self._js, self._client, self._clock, self._pattern = js, client, clock, pattern
        self._take, self._read_all = take, read_all
        self.on_other: Callable[[bool], object] | None = None
        """Called when a stream with messages was found in the place of the one that was followed: an older copy of that
        (True), or one that was created since, of a copy or anew."""
        self.on_current: Callable[[], object] = lambda: None
        """Called when everything was read again."""
        self._newest: Message | None = None
        """The newest message that is known of the stream, where `on_other` is set; of a MiB at most."""
        self._read_on: Client | None = None
        self._followed_at = math.inf
        """When the newest consumer began, after everything was read."""
        """The connection on which everything was read; None where it must be read again."""
        self._tried: tuple[Client | None, int] = None, 0
        """The connection of the last failed try, and how many failed on it."""
        self._connected = asyncio.Event()
        self._target, self._target_at = 0, math.inf
        """A sequence that a list has shown, and the monotonic time by which it must be reached."""
        self._received: deque[Msg] = deque(maxlen=2 * BATCH)
        self._woken = asyncio.Event()

    def continue_from(self, created: str, reached: int, client: Client) -> None:
        """Everything up to a sequence was read on this connection: follow from there."""
        self._read_on = client
        self.position.start_at(created, reached)

    def read_again(self) -> None:
        """Read all that is stored again, soon."""
        self._read_on = None
        self._woken.set()

    def connected(self) -> None:
        """A connection was made: everything is read again on it, at once."""
        self._connected.set()
        self.read_again()

    @property
    def is_current(self) -> bool:
        """Whether everything was read on this connection, or cannot be: until then the stream may be an older one."""
        try:
            client = self._client()
        except Unavailable:
            return False
        return client is self._read_on or self._tried == (client, TRIES)

    def take_look(self, look: StreamLook, asked_at: float) -> None:
        """A list of streams was read, which was asked for then."""
        if not self.position.take_look(look, asked_at):
            return
        if self.position.is_other or self._is_reconnected():
            self.read_again()
        if look.last_seq > self.position.reached and self._target_at == math.inf:
            self._target, self._target_at = look.last_seq, self._clock.now().mono + BEHIND
            self._woken.set()

    def _is_reconnected(self) -> bool:
        try:
            return self._client() is not self._read_on
        except Unavailable:
            return False

    def _is_connected(self) -> bool:
        try:
            return self._client().is_connected
        except Unavailable:
            return False

    async def run(self) -> None:
        """Follow until cancelled."""
        delays, failed = backoff(self._clock, FIRST_RETRY, LAST_RETRY), 0
        while True:
            raise_if_cancelled()
            self._connected.clear()
            error = await self._try_to_follow()
            failed = 0 if error is None or self._is_outage(error) else failed + 1
            if error is None and self._clock.now().mono - self._followed_at >= LIVED:
                delays = backoff(self._clock, FIRST_RETRY, LAST_RETRY)
            if error is not None:
                self._report(str(error) or type(error).__name__, log.warning if failed == LOGGED_AT else log.debug)
            delay = RARELY if failed >= LOGGED_AT else next(delays)
            await (self._read_singly(delay) if failed > 1 else self._clock.wait(self._connected, delay))

    @property
    def _missing(self) -> str:
        return f"there is no stream {self.stream}"

    def _is_outage(self, error: Exception) -> bool:
        """Whether it says nothing of rights: who creates the stream logs that it is missing, and who writes to it that
        it has no leader."""
        return str(error) == self._missing or is_leaderless(error) or not self._is_connected()

    async def _try_to_follow(self) -> Exception | None:
        """The life of one consumer; returns what is wrong if it delivered nothing."""
        client = None
        try:
            client = self._client()
            await self._follow(client)
        except (Unavailable, TimeoutError, nats.errors.Error) as error:
            if not is_leaderless(error):
                self._tried = client, min(TRIES, self._tried[1] + 1 if client is self._tried[0] else 1)
            return error
        self._tried = None, 0
        return None

    def _report(self, error: str, report: Callable[..., object]) -> None:
        api = f"{self._js.prefix}.CONSUMER"
        report(
            "stream.not_followed",
            stream=self.stream,
            error=error,
            cost="what other replicas store is read by one request each, and late; nothing while the stream is away",
            hint=remedy_of_code(error)
            or "correct what `error` names. Where nothing is answered or delivered, its only copy is on servers that "
            "are down (`nats server report jetstream` shows which), or a right is missing: allow it to publish "
            f"{api}.CREATE.{self.stream}.> and {api}.MSG.NEXT.{self.stream}.*",
        )

    async def _read_singly(self, seconds: float) -> None:
        """For some seconds, read what the lists of streams show, without a consumer."""
        ends_at = self._clock.now().mono + seconds
        while (left := ends_at - self._clock.now().mono) > 0 and not self._connected.is_set():
            raise_if_cancelled()
            self._woken.clear()
            try:
                if self.position.shown is not None:
                    await self._read_up_to(self.position.shown)
            except Unavailable as error:
                log.debug("stream.unread", stream=self.stream, error=str(error))
                await self._clock.sleep(min(left, LAST_RETRY))
            else:
                await self._clock.wait(self._woken, left)

    async def _read_up_to(self, look: StreamLook) -> None:
        position = self.position
        if position.is_other:
            older = look.created == position.created
            position.start_at(look.created, max(0, look.last_seq - SINGLY))
            if look.messages:
                self._tell_other(older)
        while position.reached < look.last_seq:
            message = await self._js.next(self.stream, self._pattern, position.seen + 1)
            if message is None:
                position.reach(look.last_seq)
            elif position.add(message.seq):
                self._pass_on(message)
        self._target_at = math.inf

    def _pass_on(self, message: Message) -> None:
        self._newest = message if self.on_other else None
        self._take(message)

    def _tell_other(self, older: bool) -> None:
        self._newest = None
        if self.on_other is not None:
            self.on_other(older)

    async def _is_overtaken(self) -> bool:
        """Whether an older copy has grown beyond what was followed: then the newest message is another one. Where that
        is gone, nothing shows it."""
        if (known := self._newest) is None:
            return False
        found = await self._js.next(self.stream, self._pattern, known.seq)
        same = found is not None and (found.subject, found.data) == (known.subject, known.data)
        return found is not None and found.seq == known.seq and not same

    async def _read(self, client: Client) -> int:
        """Read what must be read again; returns the last sequence of the stream."""
        position, info = self.position, await self._js.stream(self.stream)
        if info is None:
            raise Unavailable(self._missing)
        same, last = info.created == position.created, info.state.last_seq
        older = same and (last < position.reached or await self._is_overtaken())
        if client is not self._read_on or older or not same:
            followed, position.is_other = position.created, older or not same
            other, reached = position.is_other and followed, await self._read_all(info)
            self.continue_from(info.created, reached, client)
            self.on_current()
            if other and info.state.messages:
                self._tell_other(older)
        if self._newest is None and self.on_other and info.state.messages:
            self._newest = await self._js.last(self.stream, self._pattern)
        return last

    async def _follow(self, client: Client) -> None:
        """The life of one consumer; returns when another one is needed. Raises Unavailable where it did not work."""
        position, last = self.position, await self._read(client)
        self._target_at, self._followed_at = math.inf, self._clock.now().mono
        start = {"deliver_policy": "by_start_sequence", "opt_start_seq": position.seen + 1}
        name, consumer = await self._js.create_consumer(
            self.stream, self._pattern, **start, inactive_threshold=INACTIVE * 1_000_000_000
        )
        if not consumer.num_pending:
            position.reach(last)
        pulls = StreamPulls(
            client, client.new_inbox(), f"{self._js.prefix}.CONSUMER.MSG.NEXT.{self.stream}.{name}", last
        )
        self._received.clear()
        subscription = await client.subscribe(pulls.inbox, cb=self._receive)
        try:
            while client.is_connected and await self._pull(pulls):
                pass
            if pulls.gone:  # perhaps with its stream; of a copy put back nothing else shows that it is one
                self._read_on = None
        finally:
            with suppress(Exception):
                await subscription.unsubscribe()
                await client.publish(f"{self._js.prefix}.CONSUMER.DELETE.{self.stream}.{name}")

    async def _receive(self, message: Msg) -> None:
        self._received.append(message)
        self._woken.set()

    async def _pull(self, pulls: StreamPulls) -> bool:
        """One pull; returns whether it ended in time, with nothing missing."""
        await pulls.ask(BATCH, EXPIRES)
        missing, ends_at, slices = BATCH, self._clock.now().mono + EXPIRES + LATE, Slices(self._clock)
        while missing > 0:
            if not self._received:
                self._woken.clear()
                await self._clock.wait(self._woken, min(ends_at, self._target_at) - self._clock.now().mono)
                raise_if_cancelled()
            while self._received:
                raw = self._received.popleft()
                if raw.subject == pulls.inbox:  # nothing that is stored: the server says how it goes on
                    return pulls.end(raw.headers or {})
                if not self._arrived(raw, pulls):
                    return False
                missing -= 1
                await slices.pause()
            if self._read_on is not pulls.client:
                return False
            if self._is_late(ends_at):
                if not pulls.works:
                    raise Unavailable("nothing is delivered, not even the end of a pull")
                return False
        return True

    def _arrived(self, raw: Msg, pulls: StreamPulls) -> bool:
        """Take a message; returns False where one before it is missing."""
        about, pulls.count = raw.metadata, pulls.count + 1
        if about.sequence.consumer != pulls.count:
            return False
        pulls.works, seq = True, about.sequence.stream
        if self.position.add(seq):
            self._pass_on(Message(raw.subject, seq, raw.data, dict(raw.headers or {}), about.timestamp.timestamp()))
        if not about.num_pending:
            self.position.reach(pulls.last)
        return True

    def _is_late(self, ends_at: float) -> bool:
        """Whether something should have arrived."""
        if self.position.reached >= self._target:
            self._target_at = math.inf
        now = self._clock.now().mono
        return now >= ends_at or now >= self._target_at
