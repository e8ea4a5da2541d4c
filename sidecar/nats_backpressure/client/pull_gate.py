"""PullGate: a pull subscription that asks the sidecar before each pull and pulls no more than it grants."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.api import ConsumerInfo
from nats.js.errors import FetchTimeoutError

from nats_backpressure.client.client import CLOSE_TIMEOUT, BackpressureClient
from nats_backpressure.client.counted_acks import CountedAcks
from nats_backpressure.client.fetch_arguments import check
from nats_backpressure.client.grant_questions import GRANT_SECONDS, GrantQuestions
from nats_backpressure.client.held_messages import HeldMessages
from nats_backpressure.client.inbox import Inbox
from nats_backpressure.client.pulls import BATCH_WAIT, Pulls
from nats_backpressure.client.state_watch import LINK_POLL

EARLY_BELOW = 0.1
"""Seconds that a message takes, up to which the gate asks as soon as it works on the last one. With longer work it asks
EARLY_BY before that should be done: an early grant keeps its room until it is pulled, and others were held back."""
EARLY_BY = 0.03
"""Seconds: several times what a question takes."""
MEASURED = 8
"""Fetches, the longest work of which is expected: with uneven work the gate rather asks late than keeps room."""
LATE_POLL = 0.05
"""Seconds between two looks for late messages while nothing is granted."""


class PullGate:
    """Wraps a nats-py pull subscription, and is used in its place. Workers may share a gate: they pull in turn, since
    nats-py mixes up the answers of two fetches on one subscription; for pulls side by side give each worker a
    subscription and a gate."""

    def __init__(
        self,
        client: BackpressureClient,
        subscription: JetStreamContext.PullSubscription,
        subject: str,
        *,
        stream: str | None = None,
        consumer: str | None = None,
        grant_seconds: float = GRANT_SECONDS,
        batch_wait: float = BATCH_WAIT,
    ) -> None:
        """`stream` and `consumer` name the consumer that is pulled from; the subscription knows them.
        `grant_seconds` and `batch_wait` are for tests. Raises TypeError for a subscription that does not pull."""
        if not isinstance(subscription, JetStreamContext.PullSubscription):
            raise TypeError(
                f"PullGate needs what pull_subscribe() returns, not {type(subscription).__name__}: "
                "to a push or ordered consumer the server sends without being asked"
            )
        self._client, self._subscription, self._subject = client, subscription, subject
        self._turn = asyncio.Lock()
        client.leave_at_close(self)
        self._inbox = Inbox(subscription._nc)
        self._pulls = Pulls(subscription, batch_wait)
        self._held = HeldMessages(self._ask_early, CountedAcks(self._inbox))
        decide = partial(
            client.decide,
            subject,
            "consumer",
            stream=stream or subscription._stream,
            consumer=consumer or subscription._consumer,
            inbox=self._inbox,
        )
        self._questions = GrantQuestions(decide, self._held, lambda: self._pulls.kept, grant_seconds)
        self._batch, self._returned, self._returned_at = 0, 0, -math.inf
        """The last fetch: what it asked for (0: the gate left since), how many it returned, and when."""
        self._per_message: deque[float] = deque(maxlen=MEASURED)
        """Seconds that the worker took for each of those before, of the last fetches."""
        self._early_timer: asyncio.TimerHandle | None = None
        self._abandoned: asyncio.Task[tuple[list[Msg], float]] | None = None
        """The pull of a fetch that was cancelled, while it goes on."""

    async def fetch(self, batch: int = 1, timeout: float | None = 5.0, heartbeat: float | None = None) -> list[Msg]:
        """At most `batch` messages, and no more than the sidecar grants. What a cancelled fetch had is returned by the
        next one.

        Raises what the subscription's own does: nats.errors.TimeoutError when none came within `timeout` seconds (None:
        never), whether there were none or none was granted, and the time of one question later at most; its errors of
        the arguments, before anything is asked. Without an answer from the sidecar it pulls as many as it was granted
        last, after KEEPS_SIZE seconds the whole batch. `heartbeat` is not needed: no pull waits longer than a second,
        so a dead one is noticed by then.
        """
        heartbeats, batch = check(batch, timeout, heartbeat), int(batch)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        self._note_work(batch)
        while (left := deadline - time.monotonic()) > 0:
            messages, wait = await self._pull_in_turn(batch, left, deadline)
            if messages:
                return self._count(messages)
            await self._pause(min(wait, max(0.0, deadline - time.monotonic())))
        raise FetchTimeoutError if heartbeats else NatsTimeoutError  # as nats-py

    async def messages(self, batch: int = 1) -> AsyncIterator[Msg]:
        """`async for message in gate.messages(batch=10)`: one message after another, `batch` pulled at a time. It ends
        only with an error, as `fetch` raises it; what was pulled and not yet returned is returned by the next fetch."""
        while True:
            pulled = await self.fetch(batch, timeout=None)
            try:
                while pulled:
                    yield pulled.pop(0)
            finally:
                self._take_back(pulled)

    async def consumer_info(self) -> ConsumerInfo:
        return await self._subscription.consumer_info()

    async def unsubscribe(self) -> None:
        """Leaves, and ends a pull that nobody waits for any more. Raises what the subscription's own does."""
        if (pull := self._abandoned) is not None:
            self._questions.cut_off()
            pull.cancel()
            await asyncio.wait({pull}, timeout=CLOSE_TIMEOUT)
        await self.leave()
        await self._subscription.unsubscribe()
        await self._inbox.close()

    async def leave(self) -> None:
        """Give the gate's part of the mark to other gates: this one asks no more, or as a new one. Closing the client
        does that, too. Without it the sidecar notices within seconds."""
        nc = self._subscription._nc
        self._batch = 0
        self._cancel_early_timer()
        if self._inbox.is_open and not self._turn.locked() and nc.is_connected and not nc.is_draining:
            async with self._turn:
                await self._questions.leave()
                await self._inbox.close()

    @property
    def pending_msgs(self) -> int:
        """Messages that are here and were not returned yet."""
        return self._pulls.pending_msgs

    @property
    def pending_bytes(self) -> int:
        return self._pulls.pending_bytes

    @property
    def delivered(self) -> int:
        """Messages that the subscription received."""
        return self._subscription.delivered

    async def _pull_in_turn(self, batch: int, left: float, deadline: float) -> tuple[list[Msg], float]:
        """As `_pull`, in a task of its own that is never cancelled: nats-py would lose what it has. Its turn ends with
        it, and what nobody waits for any more is for the next one."""
        try:
            async with asyncio.timeout(None if left == math.inf else left):
                await self._turn.acquire()
        except TimeoutError:
            return [], 0.0
        pull = asyncio.create_task(self._pull_unless_abandoned(batch, deadline), name=f"pull {self._subject[:80]}")
        pull.add_done_callback(lambda _: self._turn.release())
        try:
            return await asyncio.shield(pull)
        except asyncio.CancelledError:
            self._abandoned = pull
            self._client.cancel_at_close(pull)
            pull.add_done_callback(self._keep)
            raise

    async def _pull_unless_abandoned(self, batch: int, deadline: float) -> tuple[list[Msg], float]:
        """As `_pull`. An error that nobody waits for, such as of a connection that is closed, is none."""
        try:
            return await self._pull(batch, deadline)
        except Exception:
            if self._abandoned is asyncio.current_task():
                return [], 0.0
            raise

    def _keep(self, pull: asyncio.Task[tuple[list[Msg], float]]) -> None:
        self._abandoned = None
        if not pull.cancelled() and pull.exception() is None:
            self._pulls.keep(pull.result()[0])

    async def _pull(self, batch: int, deadline: float) -> tuple[list[Msg], float]:
        """The messages; if nothing is granted, also the seconds to wait."""
        if late := await self._pulls.late(batch):
            return late, 0.0
        if self._subscription._nc.is_reconnecting:
            # nats-py would keep the pull for the next connection: after an outage the server would serve all of them.
            return [], LINK_POLL
        grant = await self._questions.ask(batch, deadline)
        if not grant.n:
            if grant.answered:
                self._client.stats.count("held_back", self._subject)
            return [], grant.wait
        left = min(deadline - time.monotonic(), self._questions.left(grant))
        if left <= 0:
            return [], 0.0
        messages = await self._pulls.pull(grant.n, left)
        self._questions.cut_off(self._pulls.unanswered)
        return messages, 0.0

    async def _pause(self, seconds: float) -> None:
        """Wait, but not once a late message is here."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.pending_msgs:
            await asyncio.sleep(min(left, LATE_POLL))

    def _note_work(self, batch: int) -> None:
        self._batch = batch
        if self._returned:
            self._per_message.append((time.monotonic() - self._returned_at) / self._returned)
            self._returned = 0

    def _ask_early(self) -> None:
        """Now, or once the last message should soon be done."""
        self._cancel_early_timer()
        if not self._per_message or not self._batch:
            return
        if self._per_message[-1] <= EARLY_BELOW:
            self._ask_at_last_message()
        else:
            delay = max(self._per_message) - EARLY_BY
            self._early_timer = asyncio.get_running_loop().call_later(delay, self._ask_at_last_message)

    def _cancel_early_timer(self) -> None:
        if self._early_timer is not None:
            self._early_timer.cancel()

    def _ask_at_last_message(self) -> None:
        """Unless somebody pulls: a worker alone, at its last message, will do so next."""
        if self._turn.locked():
            return
        if question := self._questions.ask_early(self._batch):
            self._client.cancel_at_close(question)

    def _take_back(self, messages: list[Msg]) -> None:
        """Keep messages that were pulled for the next fetch."""
        self._held.remove(messages)
        self._pulls.keep(messages)

    def _count(self, messages: list[Msg]) -> list[Msg]:
        self._questions.pulled(len(messages))
        self._returned, self._returned_at = len(messages), time.monotonic()
        self._held.add(messages)
        for _ in messages:
            self._client.stats.count("pulled", self._subject)
        return messages
