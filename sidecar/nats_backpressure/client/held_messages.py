"""HeldMessages: what a pull gate returned and nobody has acknowledged yet. It is in flight."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from sys import getrefcount

from nats.aio.msg import Msg

from nats_backpressure.client.inbox import Inbox
from nats_backpressure.client.lost_messages import LostMessages

CONFIRM_WAIT = 0.25
"""Seconds until the server has confirmed an ack, at most; it takes a round trip."""
MOST_HELD = 65_536
"""Messages that count as held at most; then the oldest do no more."""


def _own_references() -> int:
    message = object()
    return getrefcount(message)


ONLY_OURS = _own_references()
"""References to an object that only one variable has, as this Python counts them."""


class HeldMessages:
    def __init__(self, on_last: Callable[[], None]) -> None:
        """`on_last` is called when all but one may have ended."""
        self._on_last = on_last
        self._messages: deque[Msg] = deque(maxlen=MOST_HELD)
        """As they were when that was last looked at."""
        self._ended = 0
        """How many ended since."""
        self._confirming: Inbox | None = None
        """Where the server is to confirm the next ack."""
        self._confirmed: asyncio.Future[Msg] | None = None
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

    def end(self, message: Msg, delay: float | None = None) -> None:
        """It is acknowledged, or returned; with a `delay` it is lost: it stays in flight until that is over."""
        self._ended += 1
        if delay:
            self.lost.add(message.metadata.num_delivered, time.monotonic(), delay)
        self._tell()

    def confirm(self, inbox: Inbox) -> None:
        """Have the server say when it has counted the next ack: one that is sent before a pull may be counted after
        it."""
        self._forget_confirmation()
        self._confirming = inbox

    async def is_confirmed(self) -> bool:
        """Whether it has; waits for it, CONFIRM_WAIT at most."""
        try:
            if self._confirmed is not None:
                await asyncio.wait({self._confirmed}, timeout=CONFIRM_WAIT)
            return self._confirmed is not None and self._confirmed.done()
        finally:
            self._forget_confirmation()

    def _forget_confirmation(self) -> None:
        if self._confirmed is not None:
            self._confirmed.cancel()
        self._confirming = self._confirmed = None

    async def acknowledge(self, message: Msg) -> None:
        """Raises what a publish raises."""
        if self._confirming is None or not self._confirming.is_open or self._confirmed is not None:
            await Msg.ack(message)
        else:
            message._check_reply()
            self._confirmed = await self._confirming.send(message.reply)
            message._ackd = True
        self.end(message)

    def note_confirmed(self, message: Msg, answer: Msg) -> None:
        """The server has confirmed it to who acknowledged it."""
        if self._confirming is not None and self._confirmed is None:
            self._confirmed = asyncio.get_running_loop().create_future()
            self._confirmed.set_result(answer)
        self.end(message)

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

    def _tell(self) -> None:
        if len(self._messages) - self._ended == 1:
            self._on_last()


class HeldMessage(Msg):
    """A message that says when it ends. It refers to nothing that refers to it for longer than it is held."""

    _holder: HeldMessages

    async def ack(self) -> None:
        await self._holder.acknowledge(self)

    async def ack_sync(self, timeout: float = 1) -> Msg:
        answer = await super().ack_sync(timeout)
        self._holder.note_confirmed(self, answer)
        return answer

    async def nak(self, delay: float | None = None) -> None:
        await super().nak(delay)
        self._holder.end(self, delay)

    async def term(self) -> None:
        await super().term()
        self._holder.end(self)
