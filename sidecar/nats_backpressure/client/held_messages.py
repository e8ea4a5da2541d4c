"""HeldMessages: what a pull gate returned and nobody has acknowledged yet. It is in flight."""

from __future__ import annotations

from collections import deque
from functools import partial
from sys import getrefcount
from weakref import ref

from nats.aio.msg import Msg

MOST_HELD = 65_536
"""Messages that count as held at most; then the oldest do no more."""


def _own_references() -> int:
    message = object()
    return getrefcount(message)


ONLY_OURS = _own_references()
"""References to an object that only one variable has, as this Python counts them."""


class HeldMessages:
    def __init__(self) -> None:
        self._messages: deque[Msg] = deque(maxlen=MOST_HELD)
        """As they were when that was last looked at."""
        self._returned = 0
        """Messages that were returned with a delay since the last look: they are in flight until that is over."""

    def __len__(self) -> int:
        return len(self._messages)

    def add(self, messages: list[Msg]) -> None:
        for message in messages:
            # Only this tells a delayed one. Without a reference of its own, or it would stay in memory for a while.
            message.nak = partial(self._nak, ref(message))  # type: ignore[method-assign]
        self._messages.extend(messages)

    def remove(self, messages: list[Msg]) -> None:
        gone = set(map(id, messages))
        self._messages = deque((message for message in self._messages if id(message) not in gone), MOST_HELD)

    def forget_ended(self) -> int:
        """Forget the messages that are acknowledged, and those that nobody but us has any more. Returns how many of
        these are in flight still: they were dropped without an ack, or returned with a delay."""
        lost, self._returned = self._returned, 0
        for _ in range(len(self._messages)):
            message = self._messages.popleft()
            if message._ackd:
                continue
            if getrefcount(message) <= ONLY_OURS:
                lost += 1
            else:
                self._messages.append(message)
        return lost

    async def _nak(self, reference: ref[Msg], delay: float | None = None) -> None:
        if (message := reference()) is not None:
            await Msg.nak(message, delay)
            self._returned += bool(delay)
