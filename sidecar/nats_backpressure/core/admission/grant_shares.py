"""How several replicas share the room of a consumer at moments when none knows yet what the others grant."""

from __future__ import annotations

import math
from collections import deque

from msgspec import Struct

UNKNOWN_FOR = 0.03
"""Seconds within which a replica grants no more than its share of the room, whatever it granted in them: twice as long
as it takes until each knows what the others granted."""
ASKED_FOR, SELF_ASKED_FOR = 1.0, 0.8
"""Seconds for which a replica counts as asked after its last grant or claim: for the others, and, so that it ends there
first, for itself."""
CLAIM_EVERY = 0.3
"""Seconds between two claims of one consumer, at least."""
MOST_ASKED = 256
"""Other replicas that are remembered as asked; beyond, one more is left out until others are forgotten."""


class Share(Struct, frozen=True):
    """The place of one of several replicas among all of them."""

    replicas: int
    rank: int
    """From 0."""
    id: str = ""
    heard_since: float = -math.inf
    """Monotonic time since which what the others grant comes here."""


ALONE = Share(1, 0)


class AskedReplicas:
    """Which replicas are asked for pulls of one consumer: those that grant some, or claim that they would."""

    def __init__(self) -> None:
        self._others: dict[str, float] = {}
        """When each of them granted or claimed last."""
        self._own_at = self._own_since = -math.inf

    def add_own(self, now: float) -> None:
        """We send a grant or a claim."""
        if not self._is_asked(now):
            self._own_since = now
        self._own_at = now

    def add_other(self, replica: str, now: float) -> None:
        """One of another replica came."""
        if replica in self._others or len(self._others) < MOST_ASKED:
            self._others[replica] = now

    def claim_due(self, now: float) -> bool:
        """Whether the others are to learn that we are asked."""
        return now - self._own_at >= CLAIM_EVERY

    def share_of(self, share: Share, room: int, now: float) -> int:
        """What we may grant of a room: all replicas together grant just that. The first messages, as many as there are
        replicas, are shared by those that are asked, all others by all. So each part only grows with the room."""
        if share.replicas == 1:
            return room
        first = min(room, share.replicas)
        return self._part_of_first(share, first, now) + _part(room - first, share.replicas, share.rank)

    def _part_of_first(self, share: Share, first: int, now: float) -> int:
        self._others = {replica: at for replica, at in self._others.items() if now - at < ASKED_FOR}
        if not self._is_asked(now) or now - self._own_since < UNKNOWN_FOR:
            return 0  # the others may not know it yet
        asked = sorted([share.id, *self._others])
        return _part(first, len(asked), asked.index(share.id))

    def _is_asked(self, now: float) -> bool:
        return now - self._own_at < SELF_ASKED_FOR


def _part(n: int, of: int, rank: int) -> int:
    return n // of + (rank < n % of)


class OwnGrants:
    """What this replica granted so lately that others may not know it."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, int]] = deque()
        """(time, messages) of the last UNKNOWN_FOR seconds."""
        self._sum = 0

    def add(self, n: int, now: float) -> None:
        self._forget(now)
        self._recent.append((now, n))
        self._sum += n

    def sum(self, now: float) -> int:
        self._forget(now)
        return self._sum

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - UNKNOWN_FOR:
            self._sum -= self._recent.popleft()[1]
