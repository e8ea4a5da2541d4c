"""Grants pulls: how many messages a worker may pull, so that in flight stays below its mark.

After a while without pulls at least one message is granted.
"""

from __future__ import annotations

import math

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.core.admission.due_messages import DueMessages
from nats_backpressure.core.admission.grant_shares import AskedReplicas, OwnGrants, Share
from nats_backpressure.core.admission.open_grants import UNSEEN_LIFE, OpenGrants
from nats_backpressure.core.admission.requesters import GRANT_LIFE, Requesters
from nats_backpressure.core.admission.stall_recovery import StallRecovery
from nats_backpressure.core.admission.wanting import MOST_REQUESTERS
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.worker_reports import WorkerReports

REQUESTER_LIFE = 1.0
"""Seconds for which a requester counts as another that wants its share."""
SHORTEST_WAIT, LONGEST_WAIT = 0.05, 1.0
REFUSED_LATELY = 2.0
"""Seconds for which it counts that a requester was refused; each asks again after LONGEST_WAIT."""
REVIVING_WAIT = 0.2
"""Seconds until the next request while messages of dead workers are redelivered."""


class Grant(Struct, frozen=True, gc=False):
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
        self._grants = OpenGrants()
        self._own, self._asked = OwnGrants(), AskedReplicas()
        self._recent = _RecentRequesters()
        self._requesters = Requesters()
        self._due = DueMessages()
        self._recovery = StallRecovery()
        self._tellers: dict[str, None] = {}
        """Requesters that told what they lost, the newest last; MOST_REQUESTERS at most."""
        self._refused_at = -math.inf

    def worker_reports(self, now: float) -> WorkerReports:
        """What the requesters have said of the consumer, to whichever replica."""
        return WorkerReports(self._due.surely_coming(now), now - self._refused_at < REFUSED_LATELY)

    def offer(self, member: Member, asked: Asked, now: float, share: Share, jitter: float) -> Grant:
        """How many of the messages that are asked for may be pulled; it is not counted yet, see `add`.
        The member must be known.

        `jitter` in 0..1 spreads the times of the next requests.
        """
        reading = member.reading
        if reading is None or reading.inflight is None or member.marks is None or member.marks.inflight is None:
            return Grant(asked.n, 0.0)
        asked = self._heard(asked, reading)
        mark = member.marks.inflight.overload
        self._requesters.ask(asked, reading, now)
        self._grants.give_back(asked.requester, asked.unused)
        granted = self._grants.outstanding(reading, now)
        if asked.lost:  # first: what it lost is not held any more
            self._add_lost(asked, reading, now)
        due = self._due.count(reading, self._requesters.held, max(1, mark), now)
        read = reading.inflight + granted
        target = self._target(member, mark, now)
        if asked.held is not None:
            asked = self._with_ahead(_with_possible_held(asked, read, now - reading.at.mono), target, now)
        room = target - self._requesters.inflight(read, now) + asked.ahead
        if due > 0:  # they are pulled first, and are in flight already
            room = max(room, max(0, target - reading.inflight) + due - granted)
        fair = self._fair_part(asked, target, room, now)
        if _may_be_granted_unheard(share, reading, now):
            return Grant(1, 0.0) if read == 0 else Grant(0, SHORTEST_WAIT * (1 + jitter))
        if fair > 0 or read == 0:
            self._recovery.end(reading)
            n = fair if share.replicas == 1 else min(fair, self._shared(asked, share, room, target, now))
            if n <= 0 and read == 0:
                n = 1
            return Grant(min(asked.n, n), 0.0) if n > 0 else Grant(0, SHORTEST_WAIT * (1 + jitter), claim=True)
        wait = min(_wait(reading, room, jitter), max(SHORTEST_WAIT, self._due.next_in(now)) * (1 + jitter))
        if self._due.are_all(reading.inflight, now):
            return Grant(0, wait)  # a pull would bring a new one
        n = self._recovery.n(reading, granted + self._due.coming(now), wait, now)
        if n > 0:
            return Grant(min(asked.n, n), 0.0)
        return Grant(0, min(wait, REVIVING_WAIT * (0.5 + 0.5 * jitter)) if self._recovery.on else wait)

    def _fair_part(self, asked: Asked, target: int, room: int, now: float) -> int:
        """What one requester may have of the room. One that reports what it holds: up to an equal part of the target.
        Any other: half the room, while another asks, and no more than such a part. Beside those that report, no more
        than half with all it was granted since the last reading: one that asks again and again and never pulls would
        take all of it."""
        alone = self._recent.alone(asked.requester, now)
        if asked.held is not None:
            return min(room, self._requesters.part_of(target, asked.requester, now) - asked.held + asked.ahead)
        if alone:
            return room
        open_grants = self._grants.of(asked.requester) if self._requesters.any_reports(now) else 0
        part = self._requesters.plain_part_of(target, asked.requester, now)
        return min(part, math.ceil((room + open_grants) / 2) - open_grants)

    def _shared(self, asked: Asked, share: Share, room: int, target: int, now: float) -> int:
        """What may be granted beside other replicas, which do not know yet what we grant, nor we what they do."""
        own = self._own.sum(now)
        ours = self._asked.share_of(share, room + own, now) - own
        if asked.held is None:
            return max(0, ours)
        return max(self._requesters.sure_part_of(target, asked.requester, now) - asked.held + asked.ahead, ours)

    def _target(self, member: Member, mark: float, now: float) -> int:
        """The most messages that may be in flight: the mark as a whole number, since more would set the latch. While
        one is set, a part of it, beside those that nobody works on: that would be all of it until they come back."""
        if member.latches.inflight.on or member.latches.latency_p95.on:
            idle = max(self._due.coming(now), self._requesters.unheld(now))
            mark = min(mark, mark * member.policy.recovery_threshold + idle)
        return max(1, math.floor(mark))

    def _with_ahead(self, asked: Asked, target: int, now: float) -> Asked:
        """Where not all can have a part, who asks before it is done would take the place of one that waits. Who holds
        more than its part did not acknowledge what it said it would."""
        if not asked.ahead:
            return asked
        held = asked.held or 0
        counts = self._requesters.parts_fit(target, now)
        counts = counts and held <= self._requesters.part_of(target, asked.requester, now)
        return replace(asked, ahead=min(asked.ahead, held) if counts else 0)

    def add(self, n: int, requester: str, now: float) -> None:
        """Count `n` messages that we granted, at least one."""
        self._own.add(n, now)
        self._asked.add_own(now)
        self._count(n, requester, now)

    def claim_due(self, now: float) -> bool:
        """We are asked, and grant nothing for want of a share; returns whether the others are to learn that now."""
        return self._asked.claim_due(now)

    def refuse(self, now: float) -> None:
        """A requester is granted nothing."""
        self._refused_at = now

    def claim(self, now: float) -> None:
        """The others learn now that we are asked, and grant nothing."""
        self._asked.add_own(now)

    def add_foreign(self, replica: str, n: int, asked: Asked, reading: Reading, now: float) -> None:
        """Count `n` messages that another replica granted, or that it claims (0); `reading` is the newest one."""
        self._grants.outstanding(reading, now)  # what was delivered until then belongs to earlier grants
        self._recent.alone(asked.requester, now)
        asked = self._heard(asked, reading)
        self._requesters.ask(asked, reading, now)
        self._add_lost(asked, reading, now)
        self._asked.add_other(replica, now)
        if n > 0:
            self._count(n, asked.requester, now)
        else:
            self.refuse(now)

    def leave(self, asked: Asked, reading: Reading, now: float) -> None:
        """A requester asks no more."""
        self._grants.give_back(asked.requester, asked.unused)
        asked = self._heard(asked, reading)
        self._requesters.leave(asked, reading, now)
        self._add_lost(asked, reading, now)

    def _heard(self, asked: Asked, reading: Reading) -> Asked:
        """What it says that was not heard yet."""
        if reading.acks_all:  # where a later message acknowledges it as well, who pulled one does not see that
            asked = replace(asked, held=None, lost=0, ahead=0, due=None)
        if asked.due is not None:
            asked = asked if asked.requester in self._tellers else asked.with_earlier()
            self._tellers.pop(asked.requester, None)
            self._tellers[asked.requester] = None
            if len(self._tellers) > MOST_REQUESTERS:
                del self._tellers[next(iter(self._tellers))]
        return asked

    def _add_lost(self, asked: Asked, reading: Reading, now: float) -> None:
        self._due.read(reading)
        for n, after in asked.come_back(reading) if asked.lost and asked.due is not None else ():
            self._due.add(n, after, now)

    def _count(self, n: int, requester: str, now: float) -> None:
        self._recovery.record_grant(now)
        self._grants.add(n, requester, now)
        self._requesters.grant(requester, n, now)


def _may_be_granted_unheard(share: Share, reading: Reading, now: float) -> bool:
    """Whether others may have granted something, before what they grant came here, that the reading does not show."""
    since = share.heard_since
    return now < since + UNSEEN_LIFE and reading.at.mono <= since + GRANT_LIFE


def _with_possible_held(asked: Asked, read: int, age: float) -> Asked:
    """It may hold more than is in flight: messages that a purge removed, or that reached max_deliver, are never
    acknowledged. `age` of the reading: `read` has all grants since, as long as none of them is over."""
    return asked if asked.held is None or age >= GRANT_LIFE else replace(asked, held=min(asked.held, read))


def _wait(reading: Reading, room: int, jitter: float) -> float:
    """About the time in which acks make room for one more, spread so that not all requesters return at once."""
    expected = (1 - room) / reading.ack_rate if reading.ack_rate else LONGEST_WAIT
    return max(SHORTEST_WAIT, min(LONGEST_WAIT, expected) * (0.7 + 0.3 * jitter))


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
