"""HeldMessages: what a pull gate returned and nobody has acknowledged yet. It is in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from sys import getrefcount

from nats.aio.msg import Msg

from nats_backpressure.client.counted_acks import CountedAcks
from nats_backpressure.client.lost_messages import LostMessages

MOST_HELD = 65_536
"""Messages that count as held at most; then the oldest do no more."""


def _own_references() -> int:
    message = object()
    return getrefcount(message)


ONLY_OURS = _own_references()
"""References to an object that only one variable has, as this Python counts them."""


class HeldMessages:
    def __init__(self, on_last: Callable[[], None], acks: CountedAcks) -> None:
        """`on_last` is called when all but one may have ended."""
        self._on_last, self.acks = on_last, acks
        self._messages: deque[Msg] = deque(maxlen=MOST_HELD)
        """As they were when that was last looked at."""
        self._ended = 0
        """How many ended since."""
        self.lost = LostMessages()

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, messages: list[Msg]) -> None:
        for message in messages:
            message.__class__ = HeldMessage  # nats-py makes them
            message._holder = self  # type: ignore[attr-defined]
        self._messages.extend(messages)
        self._tell()

    def remove(self, messages: list[Msg]) -> None:
        gone = set(map(id, messages))
        self._messages = deque((message for message in self._messages if id(message) not in gone), MOST_HELD)

    def end(self, message: Msg, delay: float | None = None, *, counted: bool = False) -> None:
        """It is acknowledged, or returned; with a `delay` it is lost: it stays in flight until that is over."""
        self._ended += 1
        if delay:
            self.lost.add(message.metadata.num_delivered, time.monotonic(), delay)
        elif not counted:
            self.acks.add(message.reply)
        self._tell()

    def look(self) -> int:
        """Forget the messages that are acknowledged, and those that nobody but us has any more. Returns how many are
        held. Those that were dropped without an ack are lost: they are in flight still."""
        self._ended = 0
        for _ in range(len(self._messages)):
            message = self._messages.popleft()
            if message._ackd:
                continue
            if getrefcount(message) <= ONLY_OURS:
                self.lost.add(message.metadata.num_delivered, time.monotonic())
            else:
                self._messages.append(message)
        return len(self._messages)

    def is_last(self) -> bool:
        """Whether no other message is held, as far as known."""
        return len(self._messages) - self._ended <= 1

    def _tell(self) -> None:
        if len(self._messages) - self._ended == 1:
            self._on_last()


class HeldMessage(Msg):
    """A message that says when it ends. It refers to nothing that refers to it for longer than it is held."""

    _holder: HeldMessages

    async def ack(self) -> None:
        if last := self._holder.is_last():
            await self._holder.acks.acknowledge(self)
        else:
            await super().ack()
        self._holder.end(self, counted=last)

    async def ack_sync(self, timeout: float = 1) -> Msg:
        before = self._holder.acks.sent
        answer = await super().ack_sync(timeout)
        self._holder.acks.count(before)
        self._holder.end(self, counted=True)
        return answer

    async def nak(self, delay: float | None = None) -> None:
        await super().nak(delay)
        self._holder.end(self, delay)

    async def term(self) -> None:
        await super().term()
        self._holder.end(self)
