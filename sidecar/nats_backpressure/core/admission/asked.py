"""Asked: what one request for a pull asks for, and what it reports."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.model.reading import Reading
from nats_backpressure.protocol.requests import Due


class Asked(Struct, frozen=True, gc=False):
    """What one request asks for."""

    n: int
    """Messages."""
    requester: str
    unused: int = 0
    """Messages of its last grant that it did not pull and gives back."""
    held: int | None = None
    """Messages that it pulled and that are not acknowledged yet; None if it does not report that."""
    lost: int = 0
    """Messages that it holds no more since its last request, though they are not acknowledged: dropped, or returned
    with a delay."""
    ahead: int = 0
    """How many of those it holds are acknowledged before it pulls."""
    leaving: bool = False
    """Whether it asks no more, and pulls nothing of its last grant."""
    due: tuple[Due, ...] | None = None
    """When the lost ones come back. None if it does not report that."""
    earlier: tuple[Due, ...] = ()
    """When those come back that were lost before its last request."""

    def held_beside(self, n: int) -> int | None:
        """What counts as held beside a grant of `n`: at no moment it holds what it acknowledges before as well."""
        return None if self.held is None else max(self.held - self.ahead, self.held - n)

    def with_earlier(self) -> Asked:
        """What it says to one that heard nothing of it before."""
        if self.due is None or not self.earlier:
            return self
        return replace(self, lost=self.lost + sum(due.n for due in self.earlier), due=(*self.due, *self.earlier))

    def without_changes(self) -> Asked:
        """The same, where what it lost and gave back is counted already."""
        return replace(self, unused=0, lost=0, due=None if self.due is None else (), earlier=())

    def come_back(self, reading: Reading) -> list[tuple[int, float]]:
        """(number, seconds until then) of the lost ones; of what is not told after the longest ack wait."""
        groups, left = [], self.lost
        for due in self.due or ():
            n = min(due.n, left)
            left -= n
            groups.append((n, _seconds(due, reading)))
        return [*groups, (left, reading.ack_wait)]


def _seconds(due: Due, reading: Reading) -> float:
    """With `backoff` the server adds what the ack wait of this delivery is longer than that of the first one to a delay
    as well (measured on 2.15.1)."""
    waits = reading.backoff or (reading.ack_wait,)
    wait = waits[min(due.deliveries, len(waits)) - 1]
    return wait if due.delay_ms is None else max(0.0, due.delay_ms / 1000 + wait - waits[0])
