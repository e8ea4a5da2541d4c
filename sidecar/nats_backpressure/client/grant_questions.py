"""GrantQuestions: asks the sidecar how many messages may be pulled; early, where a worker would wait for the answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from msgspec import Struct

from nats_backpressure.client.held_messages import HeldMessages
from nats_backpressure.client.requests import Answer

GRANT_SECONDS = 1.0
"""Seconds for which the sidecar counts a grant: no pull waits longer before the gate asks again."""
LEAST_LEFT = 0.1
"""Seconds of it that an early one must have left."""
MIN_WAIT, MAX_WAIT = 0.01, 1.0
"""Seconds between two questions while nothing is granted, whatever the answer says."""
KEEPS_SIZE = 30.0
"""Seconds without a grant for which the size of the last one holds: that of the sidecar's restart, after which a burst
would take in flight past its mark."""
NO_EARLY = 60.0
"""Seconds in which nothing is asked early after a fetch came before the last message was done: it may do so always."""


class Grant(Struct, frozen=True):
    n: int
    wait: float
    """Seconds until the next question, where `n` is 0."""
    asked_at: float
    answered: bool


class GrantQuestions:
    """One question at a time. `decide` is the client's, about this consumer; `kept` returns how many messages are here
    and were not returned yet."""

    def __init__(
        self,
        decide: Callable[..., Awaitable[Answer]],
        held: HeldMessages,
        kept: Callable[[], int],
        seconds: float,
    ) -> None:
        self._decide, self._held, self._kept, self._seconds = decide, held, kept, seconds
        self._unused = self._unseen = 0
        """What is left of the last grant, and what may be delivered and is not here: of a pull that was cancelled, or
        that the server has not answered."""
        self._unseen_until = -math.inf
        self._size, self._answered_at = 0, -math.inf
        """The last grant that was not 0, and when it was given."""
        self._answered = False
        """Whether the last question was."""
        self._early: asyncio.Task[Grant] | None = None
        self._no_early_until = -math.inf

    async def ask(self, batch: int, deadline: float = math.inf) -> Grant:
        """What may be pulled now. No question begins after the deadline, and no other wait goes on."""
        if (early := await self._early_grant(batch, deadline)) is not None:
            return early
        if self._early is not None or time.monotonic() >= deadline:
            return Grant(0, MIN_WAIT, -math.inf, False)
        return await self._counted_grant(batch, deadline)

    def ask_early(self, batch: int) -> asyncio.Task[Grant] | None:
        """While somebody works on the last message: it is acknowledged before the grant is pulled."""
        may = self._early is None and self._answered and time.monotonic() >= self._no_early_until
        if may and self._held.acks.answers and self._held.look() + self._kept() == 1:
            self._early = asyncio.create_task(self._ask_ahead(batch), name="ask early")
            return self._early
        return None

    def pulled(self, n: int) -> None:
        left = self._unused - n
        self._unused, self._unseen = max(0, left), max(0, self._unseen + min(0, left))

    def cut_off(self, n: int | None = None) -> None:
        """A pull is cancelled, or `n` messages of it are not answered: these may be delivered."""
        n, now = self._unused if n is None else min(n, self._unused), time.monotonic()
        if n > 0:
            self._unseen = n + (self._unseen if now < self._unseen_until else 0)
            self._unused, self._unseen_until = self._unused - n, now + self._seconds

    async def leave(self) -> None:
        """Ask no more, or as a new one: what was granted and not pulled is given back."""
        early, self._early = self._early, None
        if early is not None:
            await asyncio.wait({early})
        await self._held.acks.are_counted()  # else another may pull its part beside them
        await self._ask(1, leaving=True)
        self._unused = 0

    async def _early_grant(self, batch: int, deadline: float) -> Grant | None:
        """What is left of an early grant, without what is not acknowledged after all."""
        if (early := self._early) is None:
            return None
        await asyncio.wait({early}, timeout=None if deadline == math.inf else max(0.0, deadline - time.monotonic()))
        if not early.done():
            return None
        self._early = None
        if early.cancelled() or not (grant := early.result()).answered:
            return None
        if too_many := self._held.look() + self._kept() + self._held.lost.untold:
            self._no_early_until = time.monotonic() + NO_EARLY
        if not await self._held.acks.are_counted(deadline):
            return None
        n = min(grant.n, batch) - too_many
        return Grant(n, 0.0, grant.asked_at, True) if n > 0 and self.left(grant) > LEAST_LEFT else None

    async def _ask_ahead(self, batch: int) -> Grant:
        await self._held.acks.are_counted()  # there is time
        return await self._ask(batch, ahead=1)

    async def _counted_grant(self, batch: int, deadline: float) -> Grant:
        """Once the server has counted the acks before, or it may serve the pull first. It counts them while the sidecar
        answers, which may have granted none because of these. Without an answer it waits for that only once."""
        acks, grant = self._held.acks, await self._ask(batch)
        because_of_acks = grant.answered and not grant.n and acks.uncounted
        if because_of_acks and await acks.are_counted(deadline) and time.monotonic() < deadline:
            grant = await self._ask(batch)
        if not grant.n or await acks.are_counted(deadline) or not grant.answered:
            return grant
        return Grant(0, MIN_WAIT, grant.asked_at, True)

    def left(self, grant: Grant) -> float:
        """Seconds in which it may be pulled."""
        return grant.asked_at + self._seconds - time.monotonic()

    async def _ask(self, batch: int, *, ahead: int = 0, leaving: bool = False) -> Grant:
        held, uncounted = self._held.look() + self._kept(), 0 if leaving else self._held.acks.uncounted
        asked_at, unused, self._unused = time.monotonic(), self._unused, 0
        held += self._unseen if asked_at < self._unseen_until else 0
        lost = self._held.lost.fields(asked_at)
        if uncounted:
            await self._held.acks.ask()  # meanwhile
        decision = await self._decide(
            max_messages=batch, unused=unused, held=held + uncounted, ahead=ahead + uncounted, leaving=leaving, **lost
        )
        n, wait = self._grant(decision, batch)
        self._answered = decision.failed_open is None
        if self._answered:
            self._held.lost.answered()
        self._unused = n if self._answered else 0  # what was never granted is not given back
        return Grant(n, wait, asked_at, self._answered)

    def _grant(self, decision: Answer, batch: int) -> tuple[int, float]:
        """How many to pull, and the seconds to wait if none."""
        now = time.monotonic()
        if decision.failed_open is not None or decision.pull is None:
            keeps = self._size and now < self._answered_at + KEEPS_SIZE
            return min(batch, self._size) if keeps else batch, 0.0
        n = min(batch, decision.pull.max_messages)
        if n > 0:
            self._size, self._answered_at = n, now
        return n, min(MAX_WAIT, max(MIN_WAIT, decision.pull.wait_ms / 1000))
