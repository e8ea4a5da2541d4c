"""Crossings: from which message of its stream on each consumer may be above a mark, and which are surely at rest.

A look at a stream bounds all its consumers from above. What is pending can have grown by no more than the messages that
arrived since a look that was answered before the sample was asked for, and what is in flight by no more than that and
what was pending. So each consumer has a *crossing*: the last sequence of its stream from which on it may be above a
mark. The bounds hold for one incarnation and one configuration of the consumer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from msgspec import Struct

from nats_backpressure.core.model.proofs import StreamProof
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.protocol.values import ConsumerKey

SETTLE_SECONDS = 10.0
"""Seconds without any movement after which a consumer counts as idle: its rates and its diagnosis have settled then."""
RESTED = 1.0
"""Seconds at rest after which what comes to a stream may be the beginning of a burst."""
DISORDER = 1.0
"""Seconds by which a look that another replica received may be older than it seems."""


class Base(Struct, frozen=True):
    """The newest look that was answered before a sample was asked for."""

    series: int
    """Looks of one series show the stream unmoved."""
    last_seq: float
    followed: bool = False
    """Whether another replica asked for the sample."""


class Crossing(Struct, gc=False):
    """When one consumer may be above a mark, and what that follows from."""

    last_seq: float
    """The last sequence of the stream from which on it may be above a mark."""
    active_at: float
    """Monotonic time at which it was last seen with anything pending or in flight, or first read."""
    read_at: float
    """Monotonic time at which its newest sample was asked for."""
    came_at: float
    """Monotonic time of the newest sample itself."""
    hot: bool
    """Whether it was hot by that sample."""

    def is_newer(self, sample: Sample, asked_at: float) -> bool:
        """Whether its newest sample is newer than this one, which was asked for `asked_at`."""
        return self.read_at > asked_at or self.came_at > sample.at.mono


class Crossings:
    """The consumers of one stream. All times are monotonic; a look takes O(1) unless something may have crossed."""

    __slots__ = (
        "_began_at",
        "_first",
        "_moved_at",
        "_series",
        "began",
        "consumers",
        "earlier",
        "earlier_at",
        "hot",
        "idle",
        "look",
        "looked_at",
        "missing",
    )

    def __init__(self) -> None:
        self.consumers: dict[ConsumerKey, Crossing] = {}
        self.hot: set[ConsumerKey] = set()
        """Those that may be above a mark."""
        self.idle: set[ConsumerKey] = set()
        """Those that rest, as the stream does: a look proves them."""
        self.earlier: set[ConsumerKey] = set()
        """Those that were idle until the stream moved."""
        self.missing: set[ConsumerKey] = set()
        """Those that exist and do not answer: they are not planned until they are shown again."""
        self.look: StreamLook | None = None
        """The newest look."""
        self.began = False
        """Whether the newest look shows the first messages after a rest: more of them may be on their way."""
        self.earlier_at = self.looked_at = self._moved_at = -math.inf
        self._began_at = -math.inf
        """When the first sample was asked for, or the stream moved last before: nothing was seen to move until then."""
        self._series = 0
        self._first = math.inf
        """No consumer that is not hot has a smaller crossing."""

    @property
    def quiet(self) -> bool:
        """Whether a consumer is neither hot nor idle."""
        return self.busy > len(self.hot)

    @property
    def busy(self) -> int:
        """How many consumers are not idle."""
        return len(self.consumers) - len(self.idle)

    @property
    def base(self) -> Base:
        """The newest look, for the samples that are asked for from now on."""
        return Base(self._series, -math.inf if self.look is None else self.look.last_seq)

    def base_of(self, look: StreamLook | None) -> Base:
        """The same for samples that another replica asked for after this look, None where it had none."""
        if look is None or self.look is None or look.created != self.look.created:
            return Base(-1, -math.inf, followed=True)
        return Base(self._series if is_unmoved(look, self.look) else -1, look.last_seq, followed=True)

    def is_older(self, look: StreamLook, at: float) -> bool:
        """Whether a look that another replica received `at` is older than the newest one: its times are not exact."""
        before = self.look
        if before is None or at > self.looked_at + DISORDER:
            return False
        if at < self.looked_at - DISORDER:
            return True
        return look.created == before.created and look.last_seq < before.last_seq

    def add_look(self, look: StreamLook, at: float) -> bool:
        """Add a look that was answered `at`; returns whether more consumers may be above a mark now."""
        before = self.look
        grown = before is not None and look.last_seq > before.last_seq
        self.began = grown and at - self._moved_at >= RESTED
        if before is None or not is_unmoved(before, look):
            self._series += 1
            self._moved_at = at
            self.end_idleness()
        self.look, self.looked_at = look, max(at, self.looked_at)
        if before is not None and (look.created != before.created or look.last_seq < before.last_seq):
            return self._heat(tuple(self.consumers))
        if look.last_seq < self._first:
            return False
        grew = self._heat([key for key, one in self.consumers.items() if one.last_seq <= look.last_seq])
        cold = (one.last_seq for key, one in self.consumers.items() if key not in self.hot)
        self._first = min(cold, default=math.inf)
        return grew

    def add_sample(self, sample: Sample, base: Base, room: float, asked_at: float) -> None:
        """Add a sample that was asked for after the look `base`; `room`: the headroom of the reading it gave."""
        key, still = sample.key, not sample.pending and not sample.inflight
        crossing = base.last_seq + room
        if not sample.config.filters and not sample.config.last_per_subject:
            # What it will have pending lies behind what was delivered last.
            crossing = max(crossing, sample.delivered_stream + sample.pending + room)
        self.missing.discard(key)
        before = self.consumers.get(key)
        active_at = before.active_at if before is not None and still else asked_at
        hot = room <= 0 or (self.look is not None and self.look.last_seq >= crossing)
        self.consumers[key] = Crossing(crossing, active_at, asked_at, sample.at.mono, hot)
        settled = self._is_settled(max(active_at, self._moved_at), asked_at, base.followed)
        idle = still and settled and base.series == self._series
        if hot:
            self.hot.add(key)
            idle = False
        else:
            self.hot.discard(key)
            self._first = min(self._first, crossing)
        (self.idle.add if idle else self.idle.discard)(key)

    def _is_settled(self, moved_at: float, asked_at: float, followed: bool) -> bool:
        """Whether a consumer that is still has been so for long enough. A new replica has seen nothing move: while
        another one reads the stream for it, it does not read once more what is idle there."""
        if self._began_at == -math.inf:
            self._began_at = moved_at
        return asked_at - moved_at >= SETTLE_SECONDS or (followed and moved_at <= self._began_at)

    def heat(self, keys: Iterable[ConsumerKey]) -> bool:
        """Something else than a sample may have moved these above a mark: their policy, or what is stored of them.
        Returns whether any is hot that was not."""
        known = [key for key in keys if key in self.consumers]
        self.idle.difference_update(known)
        return self._heat(known)

    def _heat(self, keys: Sequence[ConsumerKey]) -> bool:
        if self.hot.issuperset(keys):
            return False
        self.hot.update(keys)
        return True

    def forget(self, key: ConsumerKey) -> None:
        """The consumer does not count any more."""
        self.consumers.pop(key, None)
        for keys in (self.hot, self.idle, self.earlier, self.missing):
            keys.discard(key)

    def miss(self, key: ConsumerKey) -> None:
        """The consumer exists and does not answer."""
        self.forget(key)
        self.missing.add(key)

    def proof(self) -> StreamProof:
        """What the looks prove now."""
        return StreamProof(self.idle, self.looked_at, self.earlier, self.earlier_at)

    def end_idleness(self) -> None:
        """Looks prove no consumer any more, until it was read again."""
        if self.idle:
            self.earlier, self.earlier_at, self.idle = self.idle, self.looked_at, set()


def is_unmoved(before: StreamLook, look: StreamLook) -> bool:
    """Whether nothing came to the stream, left it, or was configured between two looks."""
    return (
        look.last_seq == before.last_seq
        and look.first_seq == before.first_seq
        and look.messages == before.messages
        and look.created == before.created
        and look.subjects == before.subjects
        and look.retention == before.retention
    )
