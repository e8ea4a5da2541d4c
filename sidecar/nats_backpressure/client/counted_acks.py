"""CountedAcks: whether the server has counted the acks that were sent. It serves a pull beside them, also before them.

It counts those of a consumer one after another, so what it answers to the last one holds for all. After a message that
is acknowledged it is asked with a sign of work on it (`+WPI`), which changes nothing then.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from msgspec import Struct
from nats.aio.msg import Msg

from nats_backpressure.client.inbox import Inbox

WAIT = 0.25
"""Seconds for which a pull waits for an answer before the sidecar is asked again. It takes a round trip."""
LOST = 2.0
"""Seconds after which an answer is lost, with its connection above all: then the pull waits no more."""
NOT_ASKED = 60.0
"""Seconds without a question after the first one was not answered: answers may never come, as from JetStream of another
account."""
MOST = 16
"""Questions without an answer; the oldest goes, for what is answered to a newer one holds for it too."""


class _Question(Struct, frozen=True):
    """Whether the server has counted the first `sent` acks, the last of which was sent to `where`."""

    where: str
    sent: int
    at: float
    answer: asyncio.Future[Msg]


class CountedAcks:
    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._last: str | None = None
        """Where the last one was sent that the server was not asked about."""
        self._sent = self._counted = 0
        self._questions: deque[_Question] = deque()
        self._ever_answered = False
        self._not_asked_until = -math.inf

    @property
    def uncounted(self) -> int:
        """How many may not be counted yet, as far as known; 0 where the server does not answer."""
        self._note_answers()
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
        assert self._last is not None
        where, sent, self._last = self._last, self._sent, None
        try:
            answer = await self._inbox.send(where, payload)
        except BaseException:
            self._last = self._last or where
            raise
        self._questions.append(_Question(where, sent, time.monotonic(), answer))
        self._note_answers()

    async def are_counted(self, deadline: float = math.inf) -> bool:
        """Waits for those that are sent now, WAIT seconds at most, and not after the deadline. True also where the
        server does not answer, and where its answer is lost. Raises what a publish raises."""
        await self.ask()
        sent, until = self._sent, min(deadline, time.monotonic() + WAIT)
        while self._waits_for(sent) and (left := until - time.monotonic()) > 0:
            await asyncio.wait({each.answer for each in self._questions}, timeout=left, return_when="FIRST_COMPLETED")
        if not self._waits_for(sent):
            return True
        now = time.monotonic()
        waited = now - self._questions[0].at
        if not self._ever_answered and waited >= WAIT:
            self._not_asked_until = now + NOT_ASKED
        elif self._ever_answered and waited >= LOST:
            self._last = self._last or self._questions[-1].where
            self._forget(len(self._questions))
            return True
        return False

    def _waits_for(self, sent: int) -> bool:
        self._note_answers()
        return self._counted < sent and bool(self._questions) and self.answers

    def _note_answers(self) -> None:
        """One answer holds for all questions before it."""
        for n, each in reversed(list(enumerate(self._questions, 1))):
            if each.answer.done() and not each.answer.cancelled():
                self._ever_answered, self._not_asked_until = True, -math.inf
                self.count(each.sent)
                self._forget(n)
                break
        self._forget(len(self._questions) - MOST)

    def _forget(self, n: int) -> None:
        """The oldest `n`."""
        for _ in range(n):
            self._questions.popleft().answer.cancel()
