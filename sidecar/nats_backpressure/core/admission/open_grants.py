"""OpenGrants: how many granted messages may still be pulled, at most."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from msgspec import Struct

from nats_backpressure.core.admission.requesters import GRANT_LIFE
from nats_backpressure.core.model.reading import Reading

UNSEEN_LIFE = 2.0
"""Seconds for which a grant counts at most until the next reading shows a pull at its very end."""
MOST_GRANTS = 64
"""Grants that are remembered with their requester; more are counted per slot, so that their number is bounded."""
SLOT = 0.02
"""Seconds of a slot of grants."""
SPAN = 0.05
"""Deliveries are remembered by readings that lie at least this many seconds apart, so that their number is bounded."""


class _CountedGrant(Struct, gc=False):
    n: int
    at: float
    ends: float
    """Monotonic time; a later pull is not covered."""
    requester: str | None
    """None where it sums several grants."""
    replaced: float = math.inf
    """When its requester was granted more."""


class _DeliveredSoFar(Struct, gc=False):
    """Deliveries between two readings."""

    n: int
    after: float
    until: float


class OpenGrants:
    """How many granted messages may still be pulled, at most.

    A grant lasts a second, and no longer than until a reading shows what its requester did before its next grant. While
    pulls wait at the server a reading does not show that: several workers may share the requester's connection, each
    with a waiting pull. A delivery may belong to any grant that lasted then; most is left if it belongs to the one that
    ended first. Which one that is is known only later, so deliveries are remembered as long as the grants they may
    belong to."""

    def __init__(self) -> None:
        self._counted: list[_CountedGrant] = []
        self._newest: dict[str, _CountedGrant] = {}
        """Of those, the one of each requester that was granted nothing since."""
        self._delivered: list[_DeliveredSoFar] = []
        self._sum = 0
        self._sum_until = math.inf
        """When the first of the grants is forgotten although no reading showed its pull."""
        self._seen: tuple[float, int] | None = None
        """The last reading: its time, and its number of deliveries."""

    def add(self, n: int, requester: str, now: float) -> None:
        self._sum += n
        self._sum_until = min(self._sum_until, now + UNSEEN_LIFE)
        if (replaced := self._newest.pop(requester, None)) is not None:
            replaced.replaced = now
        last = self._counted[-1] if self._counted else None
        if len(self._counted) < MOST_GRANTS:
            grant = self._newest[requester] = _CountedGrant(n, now, now + GRANT_LIFE, requester)
            self._counted.append(grant)
        elif last is not None and last.requester is None and last.at // SLOT == now // SLOT:
            last.n, last.at, last.ends = last.n + n, now, now + GRANT_LIFE
        else:
            self._counted.append(_CountedGrant(n, now, now + GRANT_LIFE, None))

    def give_back(self, requester: str, n: int) -> None:
        """`n` messages of the last grant of a requester will not be pulled."""
        if n > 0 and (grant := self._newest.get(requester)) is not None:
            n = min(n, grant.n, self._sum)
            grant.n -= n
            self._sum -= n

    def of(self, requester: str) -> int:
        """What one requester may still pull at most, whatever was delivered meanwhile; after `outstanding`."""
        at = self._seen[0] if self._seen else -math.inf
        return sum(grant.n for grant in self._counted if grant.requester == requester and grant.ends > at)

    def outstanding(self, reading: Reading, now: float) -> int:
        at, delivered = reading.at.mono, reading.delivered_consumer
        if self._seen == (at, delivered) and now < self._sum_until:
            return self._sum
        self._add_deliveries(at, delivered)
        if reading.waiting == 0:
            for grant in self._counted:
                if grant.replaced <= at:
                    grant.ends = min(grant.ends, grant.replaced)
        self._forget(at, now)
        self._sum = self._outstanding(at)
        lasting = (grant.at + UNSEEN_LIFE for grant in self._counted if grant.ends > at)
        self._sum_until = min(lasting, default=math.inf)
        return self._sum

    def _add_deliveries(self, at: float, delivered: int) -> None:
        before, self._seen = self._seen, (at, delivered)
        if before is None or delivered <= before[1]:
            return  # the first reading, nothing new, or a consumer that was created again
        n, last = delivered - before[1], self._delivered[-1] if self._delivered else None
        if last is not None and at - last.after < SPAN:
            last.n, last.until = last.n + n, at
        else:
            self._delivered.append(_DeliveredSoFar(n, before[0], at))

    def _forget(self, at: float, now: float) -> None:
        """Drop the deliveries from before all lasting grants, then the grants that no other delivery can belong to."""
        for grant in self._counted:
            if now >= grant.at + UNSEEN_LIFE:
                grant.ends = min(grant.ends, at)
        oldest = min((grant.at for grant in self._counted if grant.ends > at), default=math.inf)
        old = sum(one.until < oldest for one in self._delivered)
        for grant, n in self._taken(self._delivered[:old]):
            grant.n -= n
        del self._delivered[:old]
        first = self._delivered[0].after if self._delivered else math.inf
        self._counted = [grant for grant in self._counted if grant.ends > at or grant.ends >= first]
        counted = set(map(id, self._counted))
        self._newest = {name: grant for name, grant in self._newest.items() if id(grant) in counted}

    def _outstanding(self, at: float) -> int:
        left = sum(grant.n for grant in self._counted if grant.ends > at)
        return left - sum(n for grant, n in self._taken(self._delivered) if grant.ends > at)

    def _taken(self, delivered: Sequence[_DeliveredSoFar]) -> Iterator[tuple[_CountedGrant, int]]:
        """How many of them belong to which grant."""
        ending = sorted(self._counted, key=lambda grant: grant.ends)
        undelivered = [grant.n for grant in ending]
        for one in delivered:
            n = one.n
            for place, grant in enumerate(ending):
                if n == 0:
                    break
                if grant.at <= one.until and grant.ends >= one.after:
                    taken = min(n, undelivered[place])
                    undelivered[place] -= taken
                    n -= taken
                    yield grant, taken
