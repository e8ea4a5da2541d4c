"""Grants pulls: how many messages a worker may pull, so that in flight stays below its mark.

After a while without pulls at least one message is granted.
"""

from __future__ import annotations

import math
from collections import deque

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission.due_messages import DueMessages
from nats_backpressure.core.admission.grant_shares import AskedReplicas, OwnGrants, Share
from nats_backpressure.core.admission.requesters import GRANT_LIFE, Asked, Requesters
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Reading

UNSEEN_LIFE = 2.0
"""Seconds for which a grant counts at most until the next reading shows a pull at its very end."""
MOST_GRANTS = 64
"""Grants that are remembered with their requester; more are counted per slot, so that their number is bounded."""
SLOT = 0.02
"""Seconds of a slot of grants."""
SPAN = 0.05
"""Deliveries are remembered by readings that lie at least this many seconds apart, so that their number is bounded."""
REQUESTER_LIFE = 1.0
"""Seconds for which a requester counts as another that wants its share."""
STILL = 5.0
"""Seconds without an ack after which one pull is granted, whatever is in flight: only a pull makes the server
redeliver."""
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0
REVIVING_WAIT = 0.2
"""Seconds until the next request while messages of dead workers are redelivered."""


class Grant(Struct, frozen=True):
    """The answer to one pull request."""

    n: int
    """Messages that may be pulled."""
    wait: float
    """Seconds until the next request; 0 when n > 0."""
    claim: bool = False
    """Whether more may be granted once the other replicas know that this one is asked."""


class GrantTracker:
    """The grants of one consumer, of all replicas. They are forgotten within seconds and never stored."""

    def __init__(self) -> None:
        self._grants = _OpenGrants()
        self._own, self._asked = OwnGrants(), AskedReplicas()
        self._recent = _RecentRequesters()
        self._requesters = Requesters()
        self._due = DueMessages()
        self._revival = _StallRecovery()

    def offer(self, member: Member, asked: Asked, now: float, share: Share, jitter: float) -> Grant:
        """How many of the messages that are asked for may be pulled; it is not counted yet, see `add`.
        The member must be known.

        `jitter` in 0..1 spreads the times of the next requests.
        """
        reading = member.reading
        if reading is None or reading.inflight is None or member.marks is None or member.marks.inflight is None:
            return Grant(asked.n, 0.0)
        if reading.acks_all:  # who pulled a message does not see that it is acknowledged by a later one
            asked = replace(asked, held=None, lost=0, ahead=0, delayed=None)
        mark = member.marks.inflight.overload
        target = _target(member, mark)
        self._requesters.ask(asked, reading, now)
        self._grants.give_back(asked.requester, asked.unused)
        granted = self._grants.outstanding(reading, now)
        self._add_lost(asked, reading, now)  # first: what it lost is not held any more
        due = self._due.count(reading, self._requesters.held(), max(1, mark), now)
        read = reading.inflight + granted
        asked = self._with_ahead(_with_possible_held(asked, read, now - reading.at.mono), target, now)
        room = target - self._requesters.inflight(read, now) + asked.ahead
        if due > 0:  # they are pulled first, and are in flight already
            room = max(room, max(0, target - reading.inflight) + due - granted)
        fair = self._fair_part(asked, target, room, now)
        if fair > 0 or read == 0:
            self._revival.end(reading)
            own = self._own.sum(now)
            sure = 0
            if asked.held is not None:
                sure = self._requesters.sure_part_of(target, asked.requester, now) - asked.held + asked.ahead
            n = min(fair, max(sure, self._asked.share_of(share, room + own, now) - own))
            if n <= 0 and read == 0:
                n = 1
            return Grant(min(asked.n, n), 0.0) if n > 0 else Grant(0, SHORTEST_WAIT * (1 + jitter), claim=True)
        wait = min(_wait(reading, room, jitter), max(SHORTEST_WAIT, self._due.next_in(now)) * (1 + jitter))
        if self._due.are_all(reading.inflight, now):
            return Grant(0, wait)  # a pull would bring a new one
        n = self._revival.n(reading, granted + self._due.coming(now), wait, now)
        if n > 0:
            return Grant(min(asked.n, n), 0.0)
        return Grant(0, min(wait, REVIVING_WAIT * (0.5 + 0.5 * jitter)) if self._revival.on else wait)

    def _fair_part(self, asked: Asked, target: int, room: int, now: float) -> int:
        """What one requester may have of the room. One that reports what it holds: up to an equal part of the target.
        Any other: half the room, while another asks. Beside those that report, no more than that with all it was
        granted since the last reading: one that asks again and again and never pulls would take all of it."""
        alone = self._recent.alone(asked.requester, now)
        if asked.held is not None:
            return min(room, self._requesters.part_of(target, asked.requester, now) - asked.held + asked.ahead)
        if alone:
            return room
        open_grants = self._grants.of(asked.requester) if self._requesters.any_reports(now) else 0
        return math.ceil((room + open_grants) / 2) - open_grants

    def _with_ahead(self, asked: Asked, target: int, now: float) -> Asked:
        """Where not all can have a part, who asks before it is done would take the place of one that waits."""
        fits = asked.ahead and self._requesters.parts_fit(target, now)
        return replace(asked, ahead=min(asked.ahead, asked.held or 0) if fits else 0)

    def add(self, n: int, requester: str, now: float) -> None:
        """Count `n` messages that we granted, at least one."""
        self._own.add(n, now)
        self._asked.add_own(now)
        self._count(n, requester, now)

    def claim_due(self, now: float) -> bool:
        """We are asked, and grant nothing for want of a share; returns whether the others are to learn that now."""
        return self._asked.claim_due(now)

    def claim(self, now: float) -> None:
        """The others learn now that we are asked, and grant nothing."""
        self._asked.add_own(now)

    def add_foreign(self, replica: str, n: int, asked: Asked, reading: Reading, now: float) -> None:
        """Count `n` messages that another replica granted, or that it claims (0); `reading` is the newest one."""
        self._grants.outstanding(reading, now)  # what was delivered until then belongs to earlier grants
        self._recent.alone(asked.requester, now)
        self._requesters.ask(asked, reading, now)
        self._add_lost(asked, reading, now)
        self._asked.add_other(replica, now)
        if n > 0:
            self._count(n, asked.requester, now)

    def leave(self, asked: Asked, reading: Reading, now: float) -> None:
        """A requester asks no more."""
        self._grants.give_back(asked.requester, asked.unused)
        held = 0 if reading.acks_all else asked.held or 0
        self._requesters.leave(asked.requester, held, reading, now)
        if not reading.acks_all:
            self._add_lost(asked, reading, now)

    def _add_lost(self, asked: Asked, reading: Reading, now: float) -> None:
        self._due.read(reading)
        if asked.delayed is None:
            return
        self._due.add(asked.delayed, asked.delay, now)
        self._due.add(asked.lost - asked.delayed, reading.ack_wait, now)

    def _count(self, n: int, requester: str, now: float) -> None:
        self._revival.record_grant(now)
        self._grants.add(n, requester, now)
        self._requesters.grant(requester, n, now)


def _with_possible_held(asked: Asked, read: int, age: float) -> Asked:
    """It may hold more than is in flight: messages that a purge removed, or that reached max_deliver, are never
    acknowledged. `age` of the reading: `read` has all grants since, as long as none of them is over."""
    return asked if asked.held is None or age >= GRANT_LIFE else replace(asked, held=min(asked.held, read))


def _target(member: Member, mark: float) -> int:
    """The most messages that may be in flight: the mark as a whole number, since more would set the latch."""
    latched = member.latches.inflight.on or member.latches.latency_p95.on
    return max(1, math.floor(mark * member.policy.recovery_threshold if latched else mark))


def _wait(reading: Reading, room: int, jitter: float) -> float:
    """About the time in which acks make room for one more, spread so that not all requesters return at once."""
    expected = (1 - room) / reading.ack_rate if reading.ack_rate else LONGEST_WAIT
    return max(SHORTEST_WAIT, min(LONGEST_WAIT, expected) * (0.7 + 0.3 * jitter))


class _CountedGrant(Struct):
    n: int
    at: float
    ends: float
    """Monotonic time; a later pull is not covered."""
    requester: str | None
    """None where it sums several grants."""
    replaced: float = math.inf
    """When its requester was granted more."""


class _DeliveredSoFar(Struct):
    """Deliveries between two readings."""

    n: int
    after: float
    until: float


class _OpenGrants:
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
        self._delivered = [one for one in self._delivered if one.until >= oldest]
        first = self._delivered[0].after if self._delivered else math.inf
        self._counted = [grant for grant in self._counted if grant.ends > at or grant.ends >= first]
        counted = set(map(id, self._counted))
        self._newest = {name: grant for name, grant in self._newest.items() if id(grant) in counted}

    def _outstanding(self, at: float) -> int:
        ending = sorted(self._counted, key=lambda grant: grant.ends)
        undelivered = [grant.n for grant in ending]
        for one in self._delivered:
            n = one.n
            for place, grant in enumerate(ending):
                if n == 0:
                    break
                if grant.at <= one.until and grant.ends >= one.after:
                    taken = min(n, undelivered[place])
                    undelivered[place] -= taken
                    n -= taken
        return sum(n for n, grant in zip(undelivered, ending, strict=True) if grant.ends > at)


class _RecentRequesters:
    """Whether another requester asked lately; the two newest times are enough."""

    def __init__(self) -> None:
        self._newest, self._newest_at = "", -math.inf
        self._other_at = -math.inf
        """When another than the newest requester last asked."""

    def alone(self, requester: str, now: float) -> bool:
        if requester != self._newest:
            self._newest, self._other_at = requester, self._newest_at
        self._newest_at = now
        return now - self._other_at >= REQUESTER_LIFE


class _StallRecovery:
    """What may be pulled without room: without any pull, messages of dead workers would stay in flight forever.

    Once there was no ack for long enough: one message per wait, and beyond that as many as certainly add nothing to
    what is in flight, since the server first redelivers what was not acknowledged in time. That number starts at one
    and is doubled, only while in flight does not grow, since a worker that asks for more time also looks like a dead
    one.
    """

    def __init__(self) -> None:
        self.on = False
        self._history: deque[tuple[float, int]] = deque()
        """(time, number of deliveries), one ack wait back."""
        self._allowance = 1
        self._raised_at = 0
        """The deliveries counted when the allowance was last doubled."""
        self._ceiling = 0
        self._counted = -math.inf

    def end(self, reading: Reading) -> None:
        self._remember(reading)
        self.on = False

    def record_grant(self, now: float) -> None:
        self._counted = now

    def n(self, reading: Reading, beside: int, wait: float, now: float) -> int:
        """`beside`: what was granted, and what comes back only later than after an ack wait."""
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
        harmless = min(self._allowance, self._expired(reading, inflight)) - beside
        return max(harmless, 1 if still and now - self._counted >= wait else 0)

    def _remember(self, reading: Reading) -> None:
        at, delivered = reading.at.mono, reading.delivered_consumer
        if self._history and delivered < self._history[-1][1]:
            self._history.clear()  # another incarnation
        if not self._history or at - self._history[-1][0] >= reading.ack_wait / 32:
            self._history.append((at, delivered))
        while len(self._history) > 1 and (self._history[1][0] <= at - reading.ack_wait or len(self._history) > 64):
            self._history.popleft()

    def _expired(self, reading: Reading, inflight: int) -> int:
        """How many messages in flight were certainly delivered longer than an ack wait ago."""
        at, delivered = self._history[0]
        if reading.at.mono - at < reading.ack_wait:
            return 0
        return max(0, inflight - (reading.delivered_consumer - delivered))
