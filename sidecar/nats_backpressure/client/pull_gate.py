"""PullGate: a pull subscription that asks the sidecar before each pull and pulls no more than it grants."""

from __future__ import annotations

import asyncio
import time

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext

from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.requests import Answer

GRANT_SECONDS = 1.0
"""Seconds for which the sidecar counts a grant: no pull waits longer before the gate asks again."""
MIN_WAIT, MAX_WAIT = 0.01, 1.0
"""Seconds between two questions while nothing is granted, whatever the answer says."""
NOT_OVERLOADED = ("inactive", "warning")
BATCH_WAIT = 0.02
"""Seconds for which the first message of a pull waits for the others; a slower one is late."""
LATE_POLL = 0.05
"""Seconds between two looks for late messages while nothing is granted."""


class PullGate:
    """Wraps a nats-py pull subscription. Workers may share a gate: they pull in turn, since nats-py mixes up the
    answers of two fetches on one subscription; for pulls side by side give each worker a subscription and a gate."""

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
        """`stream` and `consumer` name the consumer that is pulled from, where the subject has several.
        `grant_seconds` and `batch_wait` are for tests."""
        self._client, self._subscription, self._subject = client, subscription, subject
        self._stream, self._consumer = stream, consumer
        self._grant_seconds, self._batch_wait = grant_seconds, batch_wait
        self._turn = asyncio.Lock()
        self._unused, self._unused_until = 0, 0.0
        """What is left of the last grant, and until when it counts. A new grant replaces those before it."""
        self._waiting: list[Msg] = []
        """Messages of a fetch that was cancelled, for the next one."""

    async def fetch(self, batch: int = 1, timeout: float = 5.0) -> list[Msg]:
        """At most `batch` messages, and no more than the sidecar grants.

        Raises nats.errors.TimeoutError, as the subscription does, when none came within `timeout` seconds, whether
        there were none or none was granted. Without an answer from the sidecar it pulls the whole batch.
        """
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._turn.acquire()
            except TimeoutError:
                break
            try:
                messages, wait = await self._pull(batch, deadline)
            finally:
                self._turn.release()
            if messages:
                return self._count(messages)
            await self._pause(min(wait, max(0.0, deadline - time.monotonic())))
        raise NatsTimeoutError

    async def _pull(self, batch: int, deadline: float) -> tuple[list[Msg], float]:
        """The messages; if nothing is granted, also the seconds to wait."""
        if late := await self._take_late(batch):
            return late, 0.0
        asked_at = time.monotonic()
        decision = await self._client.decide(
            self._subject, "consumer", max_messages=batch, stream=self._stream, consumer=self._consumer
        )
        (n, wait), unused, until = _grant(decision, batch), self._left(asked_at), asked_at + self._grant_seconds
        if n > 0:
            self._unused, self._unused_until = n, until
        elif unused and decision.status in NOT_OVERLOADED:
            # The room is taken by our own last grant, which is not used up.
            n, until = min(batch, unused), self._unused_until
        else:
            self._unused = 0
            self._client.stats.count("held_back", self._subject)
            return [], wait
        left = min(deadline, until) - time.monotonic()
        if left <= 0:
            return [], 0.0
        # Again: with as many in its queue nats-py would ask the server for 0 more, which sends 1 (2.16).
        if late := await self._take_late(batch):
            return late, 0.0
        try:
            messages = await self._subscription.fetch(1, timeout=left)
        except TimeoutError:  # nats.errors.TimeoutError is one; fetch raises both
            return [], 0.0
        try:
            return messages + await self._fetch_rest(n - 1), 0.0
        except BaseException:  # for example cancelled: the next fetch returns what is here already
            self._waiting += messages
            raise

    async def _fetch_rest(self, n: int) -> list[Msg]:
        """Up to `n` more, if they are there: fetch(n) alone would hold back the first until all came or its time is
        over (2.16)."""
        if n == 0:
            return []
        if late := await self._take_late(n):
            return late
        try:
            return await self._subscription.fetch(n, timeout=self._batch_wait)
        except TimeoutError:  # nats.errors.TimeoutError is one; fetch raises both
            return []

    async def _take_late(self, batch: int) -> list[Msg]:
        """Messages that came after their fetch ended: nats-py ends one on the status of an older pull, and its own pull
        goes on at the server. They were granted and are in flight: until they are acknowledged, no more is granted."""
        messages, self._waiting = self._waiting[:batch], self._waiting[batch:]
        # Not fetch(): that would pull as well.
        while len(messages) < batch and self._subscription.pending_msgs:
            message = await self._subscription._sub.next_msg(timeout=self._grant_seconds)
            if not JetStreamContext.is_status_msg(message):
                messages.append(message)
        return messages

    async def _pause(self, seconds: float) -> None:
        """Wait, but not once a late message is here."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._subscription.pending_msgs:
            await asyncio.sleep(min(left, LATE_POLL))

    def _left(self, now: float) -> int:
        """How many were granted, still count, and were not used."""
        return self._unused if now < self._unused_until else 0

    def _count(self, messages: list[Msg]) -> list[Msg]:
        self._unused = max(0, self._unused - len(messages))
        for _ in messages:
            self._client.stats.count("pulled", self._subject)
        return messages


def _grant(decision: Answer, batch: int) -> tuple[int, float]:
    """How many to pull, and the seconds to wait if none."""
    if decision.pull is None:
        return batch, 0.0
    wait = min(MAX_WAIT, max(MIN_WAIT, decision.pull.wait_ms / 1000))
    return min(batch, decision.pull.max_messages), wait
