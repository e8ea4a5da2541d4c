"""Requesters: what those that report it hold of a consumer, between two readings, and what each may hold.

A reading is up to an interval old: the acks since are not in it, and would leave no room where the mark is little above
what the workers need. Requesters that report how many messages they hold show them with their next request.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.core.admission.mark_parts import Parts, parts_of
from nats_backpressure.core.admission.wanting import MOST_REQUESTERS, Wanting
from nats_backpressure.core.model.reading import Reading

GRANT_LIFE = 1.0
"""Seconds after a grant in which it may be pulled."""
REPORT_LIFE = 3.0
"""Seconds for which a report counts: those whose pull found nothing ask once a second. Then what it held is known from
readings, as for those that report nothing."""
PLAIN_FOR = 60.0
"""Seconds after the request of one that reports nothing in which no part of another is sure, and in which what it was
granted may be in work."""
OTHERS_FOR = 2.0
"""Seconds of readings whose highest excess counts as held by others: by who died, or reports nothing."""
KNOWN_AFTER = 0.03
"""Seconds after which all replicas know what one of them granted."""
PLAIN_SLOT = 0.5
"""Seconds within which grants to those that report nothing count as one."""
SLOT = 0.02
"""Seconds of a slot in which sums are remembered, so that their number is bounded."""
GONE_PARTS = 100
"""Parts of the ack wait in which numbers of such messages are summed up, so that these are bounded."""
MOST_GONE = 4 * GONE_PARTS
"""Such numbers at most, whatever the ack wait becomes; then more are added to one that lasts longer."""


class _Report(Struct, gc=False):
    most: int
    """What it may hold at most: what it reported, and what it was granted since."""
    ahead: int
    """How many of these are acknowledged before it pulls that."""
    wants: int
    """What it would hold if it was granted all it asked for."""
    at: float


class Requesters:
    """What all requesters of one consumer hold at most."""

    def __init__(self) -> None:
        self._reports: dict[str, _Report] = {}
        """The one that asked least recently first."""
        self._wanting, self._plain_wanting = Wanting(), Wanting()
        self.held = 0
        """What those that report it hold at most."""
        self._sums: deque[list[float]] = deque()
        """[time, highest sum] of the slots of the last OTHERS_FOR seconds."""
        self._others: deque[tuple[float, int]] = deque()
        """(time, excess) of the readings of the last OTHERS_FOR seconds."""
        self._gone: deque[tuple[float, int]] = deque()
        """(end, number) of messages that nobody holds any more and that were not acknowledged: in flight until then."""
        self._gone_unread: deque[tuple[float, int]] = deque()
        """(since, number) of those that a reading may not show yet: one made after `since` shows them."""
        self._unread: tuple[float, int] | None = None
        """Time and in flight of the newest reading, until it is known what was granted until then."""
        self._seen = -math.inf
        """The time of the newest reading."""
        self._compared = False
        """Whether a reading was compared with the reports."""
        self._plain_until = -math.inf
        self._plain: deque[tuple[float, int]] = deque()
        """(time, messages) of the grants to those that report nothing, of the last PLAIN_FOR seconds."""
        self._plain_at_most: float = math.inf
        """The lowest in flight of the readings since all of them were pulled or over: these hold no more."""
        self._new = self._newcomer = ""
        """The one that asks now, if it is not known: without a place, or with that of one that left."""
        self._parts, self._plain_parts, self._sure_parts = _CachedParts(), _CachedParts(), _CachedParts()
        """The plain ones are of all, also of those that report nothing. The sure ones are those of all whose report
        counts: what these have is granted without a look at what others grant now."""

    def ask(self, asked: Asked, reading: Reading, now: float) -> None:
        """A request comes: what was granted before to this requester is pulled or given back."""
        self._read(reading, now)
        requester, held = asked.requester, asked.held
        self._add_lost(asked, reading, now)
        if held is None:
            self._plain_until = now + PLAIN_FOR
            self._plain_newcomer = "" if self._plain_wanting.is_known(requester, now) else requester
            if self._plain_wanting.ask(requester, asked.n, 0, asked.unused, now):
                self._plain_parts.until = -math.inf
            return
        known = self._wanting.is_known(requester, now)
        takes_place = not known and self._wanting.takes_place(now)
        self._new, self._newcomer = "" if known or takes_place else requester, "" if known else requester
        self._forget(reading, now)
        report = self._reports.pop(requester, None)
        n = max(0, asked.n - asked.ahead)
        changes = self._wanting.ask(requester, n, held, asked.unused, now, ahead=asked.ahead > 0)
        if changes or report is None:
            self._forget_parts()
        self._reports[requester] = _Report(held, asked.ahead, held + n, now)
        self._add(held - (report.most if report else 0), now)

    def leave(self, asked: Asked, reading: Reading, now: float) -> None:
        """A requester asks no more. What it holds still is acknowledged by nobody who reports that."""
        self._read(reading, now)
        if (report := self._reports.pop(asked.requester, None)) is not None:
            self._forget_parts()
            self._add(-report.most, now)
            self._add_lost(asked, reading, now)
            self._add_gone(asked.held or 0, now, reading, now, reading.ack_wait)
        self._wanting.leave(asked.requester, now)
        self._plain_wanting.leave(asked.requester, now)

    def _add_plain(self, n: int, now: float) -> None:
        self._forget_plain(now)
        if self._plain and now - self._plain[-1][0] < PLAIN_SLOT:
            n += self._plain.pop()[1]
        self._plain.append((now, n))
        self._plain_at_most = math.inf

    def _plainly_held(self, now: float) -> float:
        """What those that report nothing hold at most."""
        self._forget_plain(now)
        return min(sum(n for _, n in self._plain), self._plain_at_most)

    def _forget_plain(self, now: float) -> None:
        while self._plain and now - self._plain[0][0] > PLAIN_FOR:
            self._plain.popleft()

    def _add_lost(self, asked: Asked, reading: Reading, now: float) -> None:
        for n, after in asked.come_back(reading) if asked.lost else ():
            self._add_gone(n, now, reading, now, after)

    def grant(self, requester: str, n: int, now: float) -> None:
        """`n` messages are granted, after `ask`."""
        if (report := self._reports.get(requester)) is None:
            self._add_plain(n, now)
            self._plain_wanting.grant(requester, n)
        else:
            more = max(0, n - report.ahead)
            report.most, report.ahead = report.most + more, max(0, report.ahead - n)
            self._wanting.grant(requester, more)
            self._add(more, now)

    def inflight(self, read: int, now: float) -> int:
        """How many messages are in flight at most; `read`: by the newest reading and the grants since."""
        if not self._reports or not self._compared:
            return read
        plain = self._plainly_held(now)
        if plain and now - self._seen > GRANT_LIFE:
            return read
        return int(min(read, self.held + self._excess(now) + plain))

    def unheld(self, now: float) -> int:
        """How many in flight nobody holds that reports it, by each reading of the last seconds: what comes and goes
        is held by one that reports too little. 0 where any other asks, who may work on them."""
        if now < self._plain_until:
            return 0
        return min((n for at, n in self._others if now - at <= OTHERS_FOR), default=0)

    def any_reports(self, now: float) -> bool:
        """Whether one that reports what it holds wants messages now."""
        return self._wanting.any(now)

    def part_of(self, target: int, requester: str, now: float) -> int:
        """How many messages of the target one requester may hold: as many as any other that wants as many, so that none
        waits for what another works off slowly. The first time just one: who else asks is not known yet."""
        return 1 if requester == self._new else self._parts.of(target, self._wanting.wants, now).of(requester)

    def plain_part_of(self, target: int, requester: str, now: float) -> int:
        """How many one may be granted that reports nothing: as many as any other that asks may hold. A newcomer may ask
        this once, as many before it: no part is kept for those."""
        if requester == self._plain_newcomer:
            return target
        return self._plain_parts.of(target, self._all_want, now).of(requester)

    def parts_fit(self, target: int, now: float) -> bool:
        """Whether each can have its part of the target at once: there are no more requesters than that."""
        return self._parts.of(target, self._wanting.wants, now).fit

    def sure_part_of(self, target: int, requester: str, now: float) -> int:
        """How many messages it may hold whatever any replica grants at this moment: its part, where nobody holds more
        than that and the parts of all are no more than the target; else none. None for a newcomer: another replica may
        give the same place to another one at this moment."""
        if now < self._plain_until or requester == self._newcomer or self._excess(now) > 0:
            return 0
        parts = self._sure_parts.of(target, self._reported, now)
        within = parts.fit and all(report.most <= parts.of(name) for name, report in self._reports.items())
        return parts.of(requester) if within else 0

    def _all_want(self, now: float) -> dict[str, int]:
        return self._plain_wanting.wants(now) | self._wanting.wants(now)

    def _reported(self, now: float) -> dict[str, int]:
        return {name: report.wants for name, report in self._reports.items() if now - report.at < REPORT_LIFE}

    def _forget_parts(self) -> None:
        self._parts.until = self._sure_parts.until = -math.inf

    def _excess(self, now: float) -> int:
        """Messages that others hold, or nobody."""
        while self._gone and self._gone[0][0] <= now:
            self._gone.popleft()
        gone = sum(n for _, n in self._gone)
        return max(gone, max((n for at, n in self._others if now - at <= OTHERS_FOR), default=0))

    def _add_gone(self, n: int, since: float, reading: Reading, now: float, after: float) -> None:
        """They are delivered again `after` so many seconds, and then held by somebody who reports them; until then
        readings show them. At `since` they were delivered, if ever."""
        if n <= 0:
            return
        if since >= self._seen:
            unread = self._gone_unread
            if unread and (since - unread[-1][0] < SLOT or len(unread) >= GONE_PARTS):
                last = unread.pop()
                unread.append((max(since, last[0]), n + last[1]))
            else:
                unread.append((since, n))
        part = max(reading.ack_wait / GONE_PARTS, SLOT)
        ends = part * math.ceil((now + max(OTHERS_FOR, after)) / part)
        place = bisect_left(self._gone, (ends, 0))
        if full := len(self._gone) >= MOST_GONE:
            place = min(place, MOST_GONE - 1)
        if place < len(self._gone) and (full or self._gone[place][0] == ends):
            ends, n = max(ends, self._gone[place][0]), n + self._gone[place][1]
            del self._gone[place]
        self._gone.insert(place, (ends, n))

    def _read(self, reading: Reading, now: float) -> None:
        """A reading shows what others hold: what is more than the requesters held at most when it was made. That is
        known once what other replicas granted until then has come."""
        if reading.at.mono > self._seen and reading.inflight is not None:
            if self._unread is not None:
                self._add_excess(*self._unread, now)
            self._seen, self._unread = reading.at.mono, (reading.at.mono, reading.inflight)
            self._limit(reading.at.mono, reading.inflight, now)
        if self._unread is not None and now - self._unread[0] >= KNOWN_AFTER:
            self._add_excess(*self._unread, now)
            self._unread = None

    def _limit(self, at: float, inflight: int, now: float) -> None:
        """Who was granted nothing lately holds no more than a reading shows in flight, and nobody has no more of it."""
        self._wanting.limit(at - GRANT_LIFE, inflight)
        for report in self._reports.values():  # the one that asked least recently first
            if report.at + GRANT_LIFE >= at:
                break
            if (less := report.most - inflight) > 0:
                report.most = inflight
                self._add(-less, now)
        while self._gone_unread and self._gone_unread[0][0] < at:
            self._gone_unread.popleft()
        over = sum(n for _, n in self._gone) - inflight - sum(n for _, n in self._gone_unread)
        while over > 0:  # those that end last may be the ones that are left
            ends, n = self._gone.popleft()
            if n > over:
                self._gone.appendleft((ends, n - over))
            over -= n

    def _add_excess(self, at: float, inflight: int, now: float) -> None:
        self._compared = True
        if self._plain and at > self._plain[-1][0] + GRANT_LIFE:
            self._plain_at_most = min(self._plain_at_most, inflight)
        held = [most for since, most in self._sums if at - SLOT <= since + SLOT and since <= at + KNOWN_AFTER]
        self._others.append((now, max(0, inflight - int(max(held, default=self.held)))))
        while self._others and now - self._others[0][0] > OTHERS_FOR:
            self._others.popleft()

    def _add(self, n: int, now: float) -> None:
        """Change the sum; a slot has the highest one of its time, which begins with the one before."""
        if not self._sums or now - self._sums[-1][0] >= SLOT:
            self._sums.append([now, self.held])
        self.held += n
        self._sums[-1][1] = max(self._sums[-1][1], self.held)
        while now - self._sums[0][0] > OTHERS_FOR:
            self._sums.popleft()

    def _forget(self, reading: Reading, now: float) -> None:
        """Drop reports that are over; what they held may be in flight until the ack wait is over."""
        while self._reports:
            oldest = next(iter(self._reports))
            report = self._reports[oldest]
            if now - report.at < REPORT_LIFE and len(self._reports) < MOST_REQUESTERS:
                return
            del self._reports[oldest]
            self._forget_parts()
            self._add(-report.most, now)
            self._add_gone(report.most, report.at + GRANT_LIFE, reading, now, reading.ack_wait)


class _CachedParts:
    """The parts of those that want messages, computed once in a slot."""

    def __init__(self) -> None:
        self._parts, self.until = Parts(0, 0), -math.inf

    def of(self, target: int, wants: Callable[[float], dict[str, int]], now: float) -> Parts:
        if now >= self.until or self._parts.target != target:
            self._parts, self.until = parts_of(target, wants(now)), now + SLOT
        return self._parts
