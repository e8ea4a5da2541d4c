"""HintReceiver: receives what other replicas share of ack metrics and advisories, and passes on what counts, once."""

from __future__ import annotations

from collections.abc import Callable

from nats_backpressure.core.reading.counted_hints import CountedHints
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.hint_batch import hints_of
from nats_backpressure.recording.hint_messages import decode_hints, stream_of
from nats_backpressure.runtime.observations import Hint
from nats_backpressure.runtime.ports import TimeSource
from nats_backpressure.runtime.tasks import Bounded

MOST_STREAMS = 100_000
"""Streams of which it is known what was counted; of one that was dropped the next batch counts."""
UNREAD = "replica_message_unread"


class HintReceiver:
    """`own`: the name of this process. `shift`: what to add to a time of a process that sent a message at that time of
    its own; None while that is not known. `wants`: whether those of a stream that a process sent may count; its last
    argument is whose were counted last."""

    def __init__(
        self,
        clock: TimeSource,
        own: str,
        take: Callable[[Hint], None],
        count: Callable[[str], None],
        *,
        shift: Callable[[str, float, Now], float | None],
        wants: Callable[[str, str, str], bool],
    ) -> None:
        self._clock, self._own, self._take, self._count = clock, own, take, count
        self._shift, self._wants = shift, wants
        self._counted: Bounded[str, CountedHints] = Bounded(MOST_STREAMS)

    def receive(self, topic: str, payload: bytes) -> None:
        """A message of another replica came."""
        stream, message = stream_of(topic), decode_hints(payload)
        if stream is None or message is None:
            self._count(UNREAD)
            return
        if message.sender == self._own:  # it comes back where the connection was lost just then
            return
        now, counted = self._clock.now(), self._counted_of(stream)
        shift = self._shift(message.sender, message.sent, now)
        since = None if shift is None else message.since + shift
        if not self._wants(stream, message.sender, counted.source):
            return
        if counted.count(message.sender, message.n, since, now.mono):
            for line in message.hints:
                for hint in hints_of(ConsumerKey(stream, message.names[line.c]), line, now):
                    self._take(hint)

    def count_own(self, stream: str, now: Now) -> None:
        """This replica counted what it received of a stream itself."""
        self._counted_of(stream).count_own(now.mono)

    def _counted_of(self, stream: str) -> CountedHints:
        if (counted := self._counted.get(stream)) is None:
            counted = self._counted[stream] = CountedHints()
        return counted
