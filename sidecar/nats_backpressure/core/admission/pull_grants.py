"""How much a consumer may take: room under the in-flight mark, shared fairly, and never nothing for ever."""

from __future__ import annotations

import math
from collections import deque

from msgspec import Struct

from nats_backpressure.core.model import Member, Reading

GRANT_LIFE = 1.0
"""Seconds for which a grant counts although it was not seen as delivered: whoever pulls later gives no promise."""
UNSEEN_LIFE = 2.0
"""A pull in a grant's last moment shows in the next reading only; a grant counts no longer than this until then."""
MOST_GRANTS = 64
"""Grants that are remembered with their asker; further ones are counted by slot, so that their number is bounded."""
SLOT = 0.02
"""Seconds of a slot of grants."""
SPAN = 0.05
"""Deliveries are remembered by readings that lie at least so many seconds apart, so that their number is bounded."""
ASKER_LIFE = 1.0
"""Seconds for which an asker counts as another that wants its share."""
STILL = 5.0
"""Seconds without an ack after which somebody must pull, whatever is in flight: only then the server redelivers."""
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0
REVIVING_WAIT = 0.2
"""Seconds after which it is worth asking again while what the dead left behind is taken up."""


class Grant(Struct, frozen=True):
    n: int
    wait: float
    """Seconds until it is worth asking again; 0 when n > 0."""


class GrantTracker:
    """Grants of one consumer. They are this replica's own knowledge, forgotten within seconds, and never stored."""

    def __init__(self) -> None:
        self._grants = _OpenGrants()
        self._askers = _RecentAskers()
        self._revival = _StallRecovery()

    def grant(self, member: Member, asked: int, asker: str, now: float, replicas: int, jitter: float) -> Grant:
        """What `asker` may take of `asked`, counted at once."""
        found = self.offer(member, asked, asker, now, replicas, jitter)
        self.add(found.n, asker, now)
        return found

    def offer(self, member: Member, asked: int, asker: str, now: float, replicas: int, jitter: float) -> Grant:
        """What `asker` may take of `asked`, before it is counted; the member must be known.

        `jitter` in 0..1 spreads who comes back when.
        """
        reading = member.reading
        if reading is None or reading.inflight is None or member.marks is None or member.marks.inflight is None:
            return Grant(asked, 0.0)
        granted = self._grants.outstanding(reading, now)
        room = _target(member, member.marks.inflight.overload) - reading.inflight - granted
        alone = self._askers.alone(asker, now)
        if room > 0:
            self._revival.end(reading)
            share = math.ceil(room / max(1, replicas))
            return Grant(min(asked, share if alone else min(share, math.ceil(room / 2))), 0.0)
        wait = _wait(reading, room, jitter)
        n = self._revival.n(reading, granted, wait, now)
        if n > 0:
            return Grant(min(asked, n), 0.0)
        return Grant(0, min(wait, REVIVING_WAIT * (0.5 + 0.5 * jitter)) if self._revival.on else wait)

    def add(self, n: int, asker: str, now: float) -> None:
        """Remember that `n` was granted."""
        if n > 0:
            self._revival.given(now)
            self._grants.add(n, asker, now)


def _target(member: Member, mark: float) -> int:
    """The most that may be in flight: below the mark as a whole number, since one above it would set the latch."""
    latched = member.latches.inflight.on or member.latches.latency_p95.on
    return max(1, math.floor(mark * member.policy.recovery_threshold if latched else mark))


def _wait(reading: Reading, room: int, jitter: float) -> float:
    """About the time in which acks make room for one more, spread so that the refused do not all come back at once."""
    expected = (1 - room) / reading.ack_rate if reading.ack_rate else LONGEST_WAIT
    return max(SHORTEST_WAIT, min(LONGEST_WAIT, expected) * (0.7 + 0.3 * jitter))


class _CountedGrant(Struct):
    n: int
    at: float
    ends: float
    """What is pulled later was not promised."""
    asker: str | None
    """None where it is several grants."""
    replaced: float = math.inf
    """When its asker was granted more."""


class _DeliveredSoFar(Struct):
    """Deliveries between two readings."""

    n: int
    after: float
    until: float


class _OpenGrants:
    """How much of what was granted may still be pulled: at most, whoever pulled what was delivered.

    A grant lasts a second, and no longer than until a reading shows what its asker did before it was granted more.
    While pulls wait at the server that shows nothing: several may share the asker's connection, each with a pull that
    waits. Deliveries may be to any grant that lasted then; most is left to be pulled if they were to those that ended
    first. Which these are is known only later, so deliveries are remembered as long as the grants they may be to.
    """

    def __init__(self) -> None:
        self._given: list[_CountedGrant] = []
        self._delivered: list[_DeliveredSoFar] = []
        self._sum = 0
        self._sum_until = math.inf
        """When a grant is forgotten although no reading shows what became of it."""
        self._seen: tuple[float, int] | None = None
        """The last reading: its moment, and the deliveries counted up to it."""

    def add(self, n: int, asker: str, now: float) -> None:
        self._sum += n
        self._sum_until = min(self._sum_until, now + UNSEEN_LIFE)
        for grant in self._given:
            if grant.asker == asker:
                grant.replaced = min(grant.replaced, now)
        last = self._given[-1] if self._given else None
        if len(self._given) < MOST_GRANTS:
            self._given.append(_CountedGrant(n, now, now + GRANT_LIFE, asker))
        elif last is not None and last.asker is None and last.at // SLOT == now // SLOT:
            last.n, last.at, last.ends = last.n + n, now, now + GRANT_LIFE
        else:
            self._given.append(_CountedGrant(n, now, now + GRANT_LIFE, None))

    def outstanding(self, reading: Reading, now: float) -> int:
        at, delivered = reading.at.mono, reading.delivered_consumer
        if self._seen == (at, delivered) and now < self._sum_until:
            return self._sum
        self._remember(at, delivered)
        if reading.waiting == 0:
            for grant in self._given:
                if grant.replaced <= at:
                    grant.ends = min(grant.ends, grant.replaced)
        self._forget(at, now)
        self._sum = self._left(at)
        lasting = (grant.at + UNSEEN_LIFE for grant in self._given if grant.ends > at)
        self._sum_until = min(lasting, default=math.inf)
        return self._sum

    def _remember(self, at: float, delivered: int) -> None:
        before, self._seen = self._seen, (at, delivered)
        if before is None or delivered <= before[1]:
            return  # the first reading, nothing new, or a consumer that was created again
        n, last = delivered - before[1], self._delivered[-1] if self._delivered else None
        if last is not None and at - last.after < SPAN:
            last.n, last.until = last.n + n, at
        else:
            self._delivered.append(_DeliveredSoFar(n, before[0], at))

    def _forget(self, at: float, now: float) -> None:
        """Drop the deliveries from before all that lasts, then the grants that none of the others can be to."""
        for grant in self._given:
            if now >= grant.at + UNSEEN_LIFE:
                grant.ends = min(grant.ends, at)
        oldest = min((grant.at for grant in self._given if grant.ends > at), default=math.inf)
        self._delivered = [one for one in self._delivered if one.until >= oldest]
        first = self._delivered[0].after if self._delivered else math.inf
        self._given = [grant for grant in self._given if grant.ends > at or grant.ends >= first]

    def _left(self, at: float) -> int:
        ending = sorted(self._given, key=lambda grant: grant.ends)
        left = [grant.n for grant in ending]
        for one in self._delivered:
            n = one.n
            for place, grant in enumerate(ending):
                if n == 0:
                    break
                if grant.at <= one.until and grant.ends >= one.after:
                    taken = min(n, left[place])
                    left[place] -= taken
                    n -= taken
        return sum(n for n, grant in zip(left, ending, strict=True) if grant.ends > at)


class _RecentAskers:
    """Whether somebody else asked lately; the two newest tell as much as all of them."""

    def __init__(self) -> None:
        self._newest, self._newest_at = "", -math.inf
        self._other_at = -math.inf
        """When anyone but the newest asker last asked."""

    def alone(self, asker: str, now: float) -> bool:
        if asker != self._newest:
            self._newest, self._other_at = asker, self._newest_at
        self._newest_at = now
        return now - self._other_at >= ASKER_LIFE


class _StallRecovery:
    """What may be taken without room: somebody must pull, or what the dead hold stays in flight for ever.

    Once no ack has moved for long enough, one message per wait, and beyond that as much as surely adds nothing to what
    is in flight: the server hands out first what was not acknowledged in time. That much is doubled from one on, and
    only while in flight does not grow, since a worker that asks for more time also looks like a dead one.
    """

    def __init__(self) -> None:
        self.on = False
        self._history: deque[tuple[float, int]] = deque()
        """Moments and the deliveries counted up to them, an ack wait back."""
        self._allowance = 1
        self._raised_at = 0
        """The deliveries counted when the allowance was last doubled."""
        self._ceiling = 0
        self._given = -math.inf

    def end(self, reading: Reading) -> None:
        self._remember(reading)
        self.on = False

    def given(self, now: float) -> None:
        self._given = now

    def n(self, reading: Reading, granted: int, wait: float, now: float) -> int:
        self._remember(reading)
        inflight = reading.inflight or 0
        still = inflight > 0 and reading.stall / 1000 + (now - reading.at.mono) >= min(reading.ack_wait, STILL)
        if self.on and inflight > self._ceiling:
            self.on = False
        if not self.on and still:
            self.on, self._allowance = True, 1
            self._ceiling, self._raised_at = inflight, reading.delivered_consumer
        if not self.on:
            return 0
        self._ceiling = inflight
        if reading.delivered_consumer - self._raised_at >= self._allowance:
            self._allowance, self._raised_at = 2 * self._allowance, reading.delivered_consumer
        harmless = min(self._allowance, self._expired(reading, inflight)) - granted
        return max(harmless, 1 if still and now - self._given >= wait else 0)

    def _remember(self, reading: Reading) -> None:
        at, delivered = reading.at.mono, reading.delivered_consumer
        if self._history and delivered < self._history[-1][1]:
            self._history.clear()  # another incarnation
        if not self._history or at - self._history[-1][0] >= reading.ack_wait / 32:
            self._history.append((at, delivered))
        while len(self._history) > 1 and (self._history[1][0] <= at - reading.ack_wait or len(self._history) > 64):
            self._history.popleft()

    def _expired(self, reading: Reading, inflight: int) -> int:
        """How many in flight were surely delivered longer than an ack wait ago."""
        at, delivered = self._history[0]
        if reading.at.mono - at < reading.ack_wait:
            return 0
        return max(0, inflight - (reading.delivered_consumer - delivered))
