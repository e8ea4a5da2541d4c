"""Pulls: takes what was granted from a pull subscription, in as few round trips as the server needs."""

from __future__ import annotations

import time

from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import Header, StatusCode

BATCH_WAIT = 0.02
"""Seconds after a message in which the next one must come; later it is late."""
TAKEN_WITHIN = 0.005
"""Seconds in which the server takes what it has. It does not end such a pull before, where it has less."""
IN_HAND_WAIT = 0.1
"""Seconds for the end of a pull while a message of the one before waits here; what may still come is late then."""
LATE_WAIT = 1.0
"""Seconds to take what is here already, or on its way: a bound that nothing reaches."""


class Pulls:
    """One pull at a time. What came for nobody, `late` or kept, is for the next one."""

    def __init__(self, subscription: JetStreamContext.PullSubscription, batch_wait: float = BATCH_WAIT) -> None:
        self._subscription, self._batch_wait = subscription, batch_wait
        self._kept: list[Msg] = []
        self._more = False
        """Whether others waited behind the last message that came."""
        self.unanswered = 0
        """Of the last pull: how many messages the server may have sent that are not here yet. It is slow at times."""

    @property
    def kept(self) -> int:
        return len(self._kept)

    @property
    def pending_msgs(self) -> int:
        return self._subscription.pending_msgs + len(self._kept)

    @property
    def pending_bytes(self) -> int:
        return self._subscription.pending_bytes + sum(len(message.data) for message in self._kept)

    def keep(self, messages: list[Msg]) -> None:
        """For the next pull, before what is kept already."""
        self._kept = messages + self._kept

    async def late(self, batch: int) -> list[Msg]:
        """Messages that came after their pull ended: nats-py ends one on the status of an older pull, and its own pull
        goes on at the server. They were granted and are in flight: until they are acknowledged, no more is granted."""
        messages, self._kept = self._kept[:batch], self._kept[batch:]
        # Not fetch(): that would pull as well.
        while len(messages) < batch and self._subscription.pending_msgs:
            message = await self._subscription._sub.next_msg(timeout=LATE_WAIT)
            if not JetStreamContext.is_status_msg(message):
                messages.append(message)
        return messages

    async def pull(self, n: int, timeout: float) -> list[Msg]:
        """Up to `n` messages, as soon as one is there; none after `timeout` seconds. Raises what `fetch` does."""
        messages, self.unanswered = await self.late(n), 0
        end = time.monotonic() + timeout
        try:
            # In calm the first request would be a round trip for nothing.
            if not messages and (n == 1 or not self._more or await self._take(n, timeout, messages)):
                await self._wait_for_first(n, end - time.monotonic(), messages)
        except BaseException:  # the next one returns what is here already
            self.keep(messages)
            raise
        self._more = bool(messages) and _others_wait(messages[-1])
        return messages

    async def _wait_for_first(self, n: int, timeout: float, messages: list[Msg]) -> None:
        """And take what else is there: fetch(n) would hold back the first until all came or its time is over (2.16)."""
        if timeout <= 0:
            return
        try:
            messages += await self._subscription.fetch(1, timeout=timeout)
        except TimeoutError:  # nats.errors.TimeoutError is one; fetch raises both
            return
        if n > 1 and _others_wait(messages[0]):
            messages += await self.late(n - 1)
            if len(messages) == 1:
                await self._take(n - 1, IN_HAND_WAIT, messages)

    async def _take(self, n: int, timeout: float, messages: list[Msg]) -> bool:
        """Add up to `n` that the server has now. Returns whether it says that it has none at all."""
        # Without an end it would stay at the server where the consumer is at its cap, and be served at any time.
        request, most = b'{"batch":%d,"no_wait":true,"expires":%d}' % (n, 1e9 * TAKEN_WITHIN), len(messages) + n
        await self._subscription._nc.publish(self._subscription._nms, request, self._subscription._deliver)
        until = end = time.monotonic() + timeout
        while (missing := most - len(messages)) and (left := until - time.monotonic()) > 0:
            try:
                message = await self._subscription._sub.next_msg(timeout=left)
            except TimeoutError:
                break
            if (status := JetStreamContext.is_status_msg(message)) is None:
                messages.append(message)
                until = min(end, time.monotonic() + self._batch_wait)
            elif status == StatusCode.NO_MESSAGES or _unsent(message) == missing:
                return not messages
            elif _unsent(message) is None:  # else it ends an earlier pull
                if not messages:  # else the next pull meets the error again
                    JetStreamContext._is_processable_msg(status, message)  # raises for one that stays
                return False
        self.unanswered = missing  # so another pull would take more than is granted
        return False


def _unsent(message: Msg) -> int | None:
    """How many messages the pull still waited for that this ends by its time; None for another end."""
    headers = message.headers or {}
    unsent = headers.get("Nats-Pending-Messages", "")
    ends = headers.get(Header.STATUS) == StatusCode.REQUEST_TIMEOUT and unsent.isdecimal()
    return int(unsent) if ends else None


def _others_wait(message: Msg) -> bool:
    """Whether others waited when this one was delivered. Those that are delivered again are not in that number: any may
    follow one of these."""
    metadata = message.metadata
    return metadata.num_delivered != 1 or metadata.num_pending > 0
