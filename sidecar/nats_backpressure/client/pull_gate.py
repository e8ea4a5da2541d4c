"""A pull subscription that asks before each pull, so that a router takes what it can work off."""

from __future__ import annotations

import asyncio
import time

from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext

from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.values import Decision

GRANT_LIFE = 1.0
"""Seconds for which the sidecar counts a grant: no pull waits longer before it asks again."""
SHORTEST_WAIT, LONGEST_WAIT = 0.01, 1.0
"""Seconds between two questions while nothing may be taken, whatever the answer says."""
NOT_OVERLOADED = ("inactive", "warning")
REST_WITHIN = 0.02
"""Seconds for which the first message of a pull waits for the others; those that take longer come late."""
LATE_EVERY = 0.05
"""Seconds between two looks for messages that come late while nothing may be taken."""


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
    ) -> None:
        """`stream` and `consumer` name the one that is pulled from, where several stand under the subject."""
        self._client, self._subscription, self._subject = client, subscription, subject
        self._stream, self._consumer = stream, consumer
        self._turn = asyncio.Lock()
        self._unused, self._unused_until = 0, 0.0
        """What is left of the last grant, and until when it counts. With a grant the sidecar forgets those before."""
        self._kept: list[Msg] = []

    async def fetch(self, batch: int = 1, timeout: float = 5.0) -> list[Msg]:
        """At most `batch` messages, and no more than the sidecar says.

        Raises nats.errors.TimeoutError, as the subscription does, when none came within `timeout` seconds, be it that
        there were none or that none may be taken. Without an answer from the sidecar it pulls the whole batch.
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
                return self._counted(messages)
            await self._pause(min(wait, max(0.0, deadline - time.monotonic())))
        raise NatsTimeoutError

    async def _pull(self, batch: int, deadline: float) -> tuple[list[Msg], float]:
        """What was pulled; where nothing may be, the seconds to wait."""
        if late := await self._late(batch):
            return late, 0.0
        asked = time.monotonic()
        found = await self._client.decide(
            self._subject, "consumer", max_messages=batch, stream=self._stream, consumer=self._consumer
        )
        (n, wait), unused, until = _granted(found, batch), self._left(asked), asked + GRANT_LIFE
        if n > 0:
            self._unused, self._unused_until = n, until
        elif unused and found.status in NOT_OVERLOADED:
            # What may not be taken is what we were granted a moment ago and have not used.
            n, until = min(batch, unused), self._unused_until
        else:
            self._unused = 0
            self._client.stats.count("held_back", self._subject)
            return [], wait
        left = min(deadline, until) - time.monotonic()
        if left <= 0:
            return [], 0.0
        # Again: with as many in its queue nats-py would ask the server for 0 more, which sends 1 (2.16).
        if late := await self._late(batch):
            return late, 0.0
        try:
            messages = await self._subscription.fetch(1, timeout=left)
        except TimeoutError:  # nats.errors.TimeoutError is one; fetch raises both
            return [], 0.0
        try:
            return messages + await self._rest(n - 1), 0.0
        except BaseException:  # cancelled, say: what is here already is for the next fetch
            self._kept += messages
            raise

    async def _rest(self, n: int) -> list[Msg]:
        """Up to `n` more, if they are there: fetch(n) alone would hold back the first until all have come or its time
        is over (2.16)."""
        if n == 0:
            return []
        if late := await self._late(n):
            return late
        try:
            return await self._subscription.fetch(n, timeout=REST_WITHIN)
        except TimeoutError:  # nats.errors.TimeoutError is one; fetch raises both
            return []

    async def _late(self, batch: int) -> list[Msg]:
        """What came after its fetch had ended: nats-py ends one on the status of an older pull, and its own goes on at
        the server. It was granted, and is in flight: unless it is worked off, nothing more ever will be granted."""
        found, self._kept = self._kept[:batch], self._kept[batch:]
        # Not fetch(): that would pull as well.
        while len(found) < batch and self._subscription.pending_msgs:
            message = await self._subscription._sub.next_msg(timeout=GRANT_LIFE)
            if not JetStreamContext.is_status_msg(message):
                found.append(message)
        return found

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the moment in which something comes late."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._subscription.pending_msgs:
            await asyncio.sleep(min(left, LATE_EVERY))

    def _left(self, now: float) -> int:
        """What was granted, still counts, and was not used."""
        return self._unused if now < self._unused_until else 0

    def _counted(self, messages: list[Msg]) -> list[Msg]:
        self._unused = max(0, self._unused - len(messages))
        for _ in messages:
            self._client.stats.count("pulled", self._subject)
        return messages


def _granted(found: Decision, batch: int) -> tuple[int, float]:
    """How many to pull, and the seconds to wait where it is none."""
    if found.pull is None:
        return batch, 0.0
    wait = min(LONGEST_WAIT, max(SHORTEST_WAIT, found.pull.wait_ms / 1000))
    return min(batch, found.pull.max_messages), wait
