"""StreamPosition: up to where one of our own streams is accounted for, and what the lists of streams show of it."""

from __future__ import annotations

import math
from collections import deque

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.runtime.ports import TimeSource

OWN_LIMIT = 10_000
"""Own writes that may wait until what was stored before them has arrived; beyond, they are received as any other."""
MOST_NOTED = 64
"""Lists of streams of which is noted what was accounted for when they came; one that was asked for before all of these
cannot show that the stream went back."""


class StreamPosition:
    """Everything up to the sequence `reached` is accounted for: it was received, read, or written by ourselves."""

    def __init__(self, clock: TimeSource) -> None:
        self._clock = clock
        self.created, self.reached = "", 0
        self.seen = 0
        """Up to which sequence everything was received, read or written by ourselves. `reached` may be ahead: the node
        of a consumer may lag behind the stream, and deliver late what it seems not to have."""
        self.shown: StreamLook | None = None
        """The newest list's look at the stream."""
        self.is_other = False
        """Whether that shows another stream than the one followed so far, or an older one."""
        self._own: set[int] = set()
        """Sequences above `seen` that we wrote ourselves."""
        self._accounted: deque[tuple[float, int]] = deque(maxlen=MOST_NOTED)
        """When each list of streams came, and what was accounted for then: one that was asked for after that shows no
        less."""
        self._started_at = -math.inf
        """When everything was read last: a list that was asked for before shows nothing of that."""

    def start_at(self, created: str, reached: int) -> None:
        """Everything up to a sequence of this stream was read."""
        self.created, self.reached, self.seen = created, reached, reached
        self._own.clear()
        self._accounted.clear()
        self.is_other, self._started_at = False, self._clock.now().mono

    def reach(self, seq: int) -> None:
        """What is not here up to a sequence is gone."""
        self.reached = max(self.reached, seq)

    def wrote(self, seq: int) -> None:
        """We stored a message ourselves: it needs not be received."""
        if seq <= self.seen or len(self._own) >= OWN_LIMIT:
            return
        self._own.add(seq)
        while self.reached + 1 in self._own:
            self.reached += 1
        while self.seen + 1 in self._own:
            self.seen += 1
            self._own.discard(self.seen)
        self.reach(self.seen)

    def add(self, seq: int) -> bool:
        """The next message is here; returns whether it is new, and not one that we stored ourselves."""
        if seq <= self.seen:
            return False
        own, self.seen = seq in self._own, seq
        self.reach(seq)
        self._own = {one for one in self._own if one > seq}
        return not own

    def take_look(self, look: StreamLook, asked_at: float) -> bool:
        """A list of streams came, which was asked for then; returns whether it shows anything of what was read."""
        if not self.created or asked_at < self._started_at:
            return False
        self.shown = look
        self.is_other |= look.created != self.created or look.last_seq < self._accounted_at(asked_at)
        self._accounted.append((self._clock.now().mono, self.reached))
        return True

    def _accounted_at(self, moment: float) -> int:
        while len(self._accounted) > 1 and self._accounted[1][0] <= moment:
            self._accounted.popleft()
        return self._accounted[0][1] if self._accounted and self._accounted[0][0] <= moment else 0
