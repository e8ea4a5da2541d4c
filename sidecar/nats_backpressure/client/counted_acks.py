"""CountedAcks: whether the server has counted the acks that were sent. It serves a pull beside them, also before them.

It counts those of a consumer one after another, so what it answers to the last one holds for all. After a message that
is acknowledged it is asked with a sign of work on it (`+WPI`), which changes nothing then.
"""

from __future__ import annotations

import asyncio
import math
import time

from nats.aio.msg import Msg

from nats_backpressure.client.inbox import Inbox

WAIT = 0.25
"""Seconds until the server has answered, at most; then it is asked again. It takes a round trip."""
NOT_ASKED = 60.0
"""Seconds without a question after the first one was not answered: answers may never come, as from JetStream of another
account."""


class CountedAcks:
    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._last: str | None = None
        """Where the last one was sent that the server was not asked about."""
        self._sent = self._counted = 0
        self._answer: asyncio.Future[Msg] | None = None
        self._asked_about: tuple[str, int] = "", 0
        """Where the last of so many was sent."""
        self._ever_answered = False
        self._not_asked_until = -math.inf

    @property
    def uncounted(self) -> int:
        """How many may not be counted yet, as far as known; 0 where the server does not answer."""
        self._note_answer()
        return self._sent - self._counted if self.answers else 0

    @property
    def answers(self) -> bool:
        """Whether the server answers, as far as known."""
        return time.monotonic() >= self._not_asked_until

    @property
    def sent(self) -> int:
        """How many, ever."""
        return self._sent

    def add(self, where: str) -> None:
        """One is sent: an ack, or what else ends a message at once."""
        self._last, self._sent = where, self._sent + 1

    def count(self, sent: int) -> None:
        """What was sent after so many is answered."""
        self._counted = max(self._counted, sent)
        if self._counted == self._sent:
            self._last = None

    async def acknowledge(self, message: Msg) -> None:
        """And have the server say when it has counted that: one message less than to ask. Raises what a publish
        raises."""
        if self._inbox.is_open and self.answers:
            message._check_reply()
            self.add(message.reply)
            await self._send(b"")
            message._ackd = True
        else:
            await Msg.ack(message)
            self.add(message.reply)

    async def ask(self) -> None:
        """Raises what a publish raises."""
        if self._last is not None and self._inbox.is_open and self.answers:
            await self._send(b"+WPI")

    async def _send(self, payload: bytes) -> None:
        self._forget()
        assert self._last is not None
        where, self._asked_about, self._last = self._last, (self._last, self._sent), None
        self._answer = await self._inbox.send(where, payload)

    async def are_counted(self) -> bool:
        """Waits for that, WAIT seconds at most. True also where the server does not answer. Raises what a publish
        raises."""
        await self.ask()
        if self._answer is None:
            return True
        if not self._answer.done():
            await asyncio.wait({self._answer}, timeout=WAIT)
        if self._note_answer():
            return True
        self._last = self._last or self._asked_about[0]  # it may be lost with its connection
        if not self._ever_answered:
            self._not_asked_until = time.monotonic() + NOT_ASKED
        self._forget()
        return False

    def _note_answer(self) -> bool:
        if self._answer is None or not self._answer.done():
            return False
        self._answer, self._ever_answered = None, True
        self.count(self._asked_about[1])
        return True

    def _forget(self) -> None:
        if not self._note_answer() and self._answer is not None:
            self._answer.cancel()
            self._answer = None
