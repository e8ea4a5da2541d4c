"""SenderClock: relates the monotonic clock of another process to one's own, from the messages that it sends."""

from __future__ import annotations

import math

REMEMBERED = 30.0
"""Seconds for which a difference counts at least, and half of what it counts at most: clocks drift, and one may have
stood still. Without a message for twice as long it begins again."""


class SenderClock:
    """The smallest (received - sent) seen lately is the difference of the two clocks, and how long the fastest message
    took. So a message that comes late is as old as it is; all others seem to be younger by no more than that."""

    __slots__ = ("_before", "_newest", "_received", "_sent", "_since", "first_at", "messages")

    def __init__(self) -> None:
        self.messages = 0
        """How many came, sent at different times. The first one may be late, and shows nothing yet."""
        self.first_at = -math.inf
        """When the first of these came, a time of the own clock."""
        self._sent = -math.inf
        self._newest = self._before = math.inf
        self._since = self._received = -math.inf

    @property
    def shift(self) -> float:
        """What to add to a time of the sender."""
        return min(self._newest, self._before)

    def add(self, sent: float, received: float) -> None:
        """A message came; both times are monotonic, the first one of the sender's clock."""
        if received - self._received > 2 * REMEMBERED:
            self.messages, self.first_at, self._sent = 0, received, -math.inf
            self._newest, self._before, self._since = math.inf, math.inf, received
        self._received = received
        self.messages += sent != self._sent
        self._sent = sent
        if received - self._since >= REMEMBERED:
            self._before, self._newest, self._since = self._newest, math.inf, received
        self._newest = min(self._newest, received - sent)
