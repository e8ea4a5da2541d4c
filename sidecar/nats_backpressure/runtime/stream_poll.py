"""StreamPoll: the polling of one followed stream, its plan and what is under way."""

from __future__ import annotations

import asyncio
import math
from collections import deque

from nats_backpressure.core.reading.due import Due
from nats_backpressure.core.reading.load import Load
from nats_backpressure.core.reading.stream_plan import StreamPlan
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.observations import Received


class StreamPoll:
    """The polling of one followed stream."""

    def __init__(self, stream: FollowedStream, plan: StreamPlan) -> None:
        self.stream, self.plan = stream, plan
        self.due: Due = plan.due(Load())
        self.planned = self.due
        """What is due next at any replica; `due` is when this one reads it."""
        self.received: deque[Received] = deque()
        """Readings of other replicas that are not taken in yet."""
        self.taking: asyncio.Task[None] | None = None
        """Takes them in."""
        self.whole_at = -math.inf
        """When the newest reading of all was asked for, of those that were received or answered."""
        self.silent: frozenset[ConsumerKey] = frozenset()
        """Members of which the last reading showed nothing."""
        self.singly: asyncio.Task[None] | None = None
        """Reads them one by one, beside the list."""
        self.tries: dict[ConsumerKey, tuple[float, float]] = {}
        """Of those that did not answer: when to try again, and the delay after that."""
        self.listing_since = math.inf
        """When the list that is under way was asked for."""
        self.reading = False
        """Whether single consumers are being read."""
        self.evaluating = 0
        """How many readings are being evaluated, each with the look after its samples."""
        self.looking, self.look_retry, self.look_after = False, 0.0, -math.inf
        """See `stream_looks.Looked`."""

    @property
    def name(self) -> str:
        return self.stream.look.name
