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

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.adapters.nats.api_types import StreamInfo
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.tasks import Slices, backoff, raise_if_cancelled

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
LOGGED_AT, RARELY = 5, 30.0
"""The failed try at which it is logged as a warning, and seconds before the next one from then on."""
SINGLY = 1000
"""Messages at the end of another stream that are read by a request each."""
OWN_LIMIT = 10_000
"""Own writes that may wait until what was stored before them has arrived; beyond, they are received as any other."""
MOST_NOTED = 64
"""Lists of streams of which is noted what was accounted for when they came; one that was asked for before all of these
cannot show that the stream went back."""
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
        self._accounted: deque[tuple[float, int]] = deque(maxlen=MOST_NOTED)
        """When each list of streams came, and what was accounted for then: one that was asked for after that shows no
        less."""
        self._continued_at = -math.inf
        """When everything was read last: a list that was asked for before shows nothing of that."""
        self._target, self._target_at = 0, math.inf
        """A sequence that a list has shown, and the monotonic time by which it must be reached."""
        self._shown: StreamLook | None = None
        """The newest list's look at the stream."""
        self._is_other = False
        """Whether that shows another stream than the one followed so far, or an older one."""
        self._received: deque[Msg] = deque(maxlen=2 * BATCH)
        self._woken = asyncio.Event()

    def continue_from(self, created: str, reached: int, client: Client) -> None:
        """Everything up to a sequence was read on this connection: follow from there."""
        self._read_on = client
        self._start_at(created, reached)

    def _start_at(self, created: str, reached: int) -> None:
        self.created, self.reached, self._seen = created, reached, reached
        self._own.clear()
        self._accounted.clear()
        self._is_other, self._continued_at = False, self._clock.now().mono

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

    def take_look(self, look: StreamLook, asked_at: float) -> None:
        """A list of streams was read, which was asked for then."""
        if not self.created or asked_at < self._continued_at:
            return
        self._shown = look
        self._is_other |= look.created != self.created or look.last_seq < self._accounted_at(asked_at)
        if self._is_other or self._is_reconnected():
            self.read_again()
        if look.last_seq > self.reached and self._target_at == math.inf:
            self._target, self._target_at = look.last_seq, self._clock.now().mono + BEHIND
            self._woken.set()
        self._accounted.append((self._clock.now().mono, self.reached))

    def _accounted_at(self, moment: float) -> int:
        while len(self._accounted) > 1 and self._accounted[1][0] <= moment:
            self._accounted.popleft()
        return self._accounted[0][1] if self._accounted and self._accounted[0][0] <= moment else 0

    def _is_reconnected(self) -> bool:
        try:
            return self._client() is not self._read_on
        except Unavailable:
            return False

    async def run(self) -> None:
        """Follow until cancelled."""
        delays, failed = backoff(self._clock, FIRST_RETRY, LAST_RETRY), 0
        while True:
            raise_if_cancelled()
            started, error = self._clock.now().mono, await self._try_to_follow()
            failed = 0 if error is None else failed + 1
            if error is None and self._clock.now().mono - started >= LAST_RETRY:
                delays = backoff(self._clock, FIRST_RETRY, LAST_RETRY)
            if failed:
                self._report(error or "", log.warning if failed == LOGGED_AT else log.debug)
            delay = RARELY if failed >= LOGGED_AT else next(delays)
            await (self._read_singly(delay) if failed > 1 else self._clock.sleep(delay))

    async def _try_to_follow(self) -> str | None:
        """The life of one consumer; returns what is wrong if it delivered nothing."""
        try:
            await self._follow()
        except (Unavailable, TimeoutError, nats.errors.Error) as error:
            return str(error) or type(error).__name__
        return None

    def _report(self, error: str, report: Callable[..., object]) -> None:
        api = f"{self._js.prefix}.CONSUMER"
        report(
            "stream.not_followed",
            stream=self.stream,
            error=error,
            cost="what other replicas store is read by one request each, and late",
            hint=f"if it stays so, allow it to publish {api}.CREATE.{self.stream}.> and {api}.MSG.NEXT.{self.stream}.*",
        )

    async def _read_singly(self, seconds: float) -> None:
        """For some seconds, read what the lists of streams show, without a consumer."""
        ends_at = self._clock.now().mono + seconds
        while (left := ends_at - self._clock.now().mono) > 0:
            raise_if_cancelled()
            self._woken.clear()
            try:
                if self._shown is not None:
                    await self._read_up_to(self._shown)
            except Unavailable as error:
                log.debug("stream.unread", stream=self.stream, error=str(error))
                await self._clock.sleep(min(left, LAST_RETRY))
            else:
                await self._clock.wait(self._woken, left)

    async def _read_up_to(self, look: StreamLook) -> None:
        if self._is_other:
            self._start_at(look.created, max(0, look.last_seq - SINGLY))
        while self.reached < look.last_seq:
            message = await self._js.next(self.stream, self._pattern, self._seen + 1)
            if message is None:
                self.reached = max(self.reached, look.last_seq)  # the others are gone
            elif not self._account(message.seq):
                self._take(message)
        self._target_at = math.inf

    async def _follow(self) -> None:
        """The life of one consumer; returns when another one is needed. Raises Unavailable where it did not work."""
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
                    pulls.works = (raw.headers or {}).get("Status") in ENDED
                    return pulls.works
                if not self._arrived(raw, pulls):
                    return False
                left -= 1
                await slices.pause()
            if self._read_on is not pulls.client:
                return False
            if self._is_late(ends_at):
                if not pulls.works:
                    raise Unavailable("nothing is delivered, not even the end of a pull")
                return False
        return True

    def _arrived(self, raw: Msg, pulls: _Pulls) -> bool:
        """Take a message; returns False where one before it is missing."""
        about, pulls.count = raw.metadata, pulls.count + 1
        if about.sequence.consumer != pulls.count:
            return False
        pulls.works, seq = True, about.sequence.stream
        if seq > self._seen and not self._account(seq):
            self._take(Message(raw.subject, seq, raw.data, dict(raw.headers or {}), about.timestamp.timestamp()))
        if not about.num_pending:
            self.reached = max(self.reached, pulls.last)
        return True

    def _account(self, seq: int) -> bool:
        """Everything up to a sequence is here; returns whether we stored the message there ourselves."""
        own, self._seen = seq in self._own, seq
        self.reached = max(self.reached, seq)
        self._own = {one for one in self._own if one > seq}
        return own

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
        self.works = False
        """Whether it delivered something, or a pull was ended in time."""
        self._subject, self._payload = subject, msgspec.json.encode({"batch": BATCH, "expires": int(EXPIRES * 1e9)})

    async def ask(self) -> None:
        await self.client.publish(self._subject, self._payload, reply=self.inbox)
