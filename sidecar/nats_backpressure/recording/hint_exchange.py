"""HintExchange: the reader of a stream counts its ack metrics and advisories, and shares what they came to with the
other replicas, which count that instead of their own.

The reader sums them up until its next reading, for a second at most, then counts the sum itself and publishes it before
the reading: so all replicas judge a reading by the same windows. A replica that receives a stream from one that does
not share its hints (an older version, or one that may not subscribe) counts its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count as count_up

from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.hint_batch import HintBatch, hints_of
from nats_backpressure.recording.hint_messages import TOPIC, encode_hints, topic_of
from nats_backpressure.recording.hint_receiver import HintReceiver
from nats_backpressure.runtime.observations import ApiLimited, ConsumerChanged, ConsumerHint, Hint, StreamChanged
from nats_backpressure.runtime.ports import HintSource, ReplicaChannel, TimeSource
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.stream_poll import StreamPoll

MOST_CONSUMERS = 1000
"""Consumers in one batch; one more ends it."""
SUBSCRIBED_SINGLY = 100
"""Streams that are subscribed to one by one; where this replica counts more, all are subscribed to, and what others
count is dropped before it is decoded."""


class HintExchange:
    """Passes hints on to a sink: at once, or summed where other replicas count them too. `shift`: what to add to a time
    of a process that sent a message at that time of its own; None while that is not known."""

    def __init__(
        self,
        clock: TimeSource,
        shared: SharedReading,
        replicas: Replicas,
        channel: ReplicaChannel,
        count: Callable[[str], None],
        shift: Callable[[str, float, Now], float | None],
    ) -> None:
        self._clock, self._shared, self._replicas = clock, shared, replicas
        self._channel = channel
        self._sink: Callable[[Hint], None] = lambda hint: None
        self._polls: Mapping[str, StreamPoll] = {}
        self._source: HintSource | None = None
        self._batches: dict[str, dict[str, HintBatch]] = {}
        """What this replica has not counted yet of the streams that it reads, by stream and consumer."""
        self._own: set[str] = set()
        """The followed streams of which this replica counts what it receives itself."""
        self._numbers = count_up()
        self._receiver = HintReceiver(
            clock, replicas.id, lambda hint: self._sink(hint), count, shift=shift, wants=self._wants
        )

    def share(self, source: HintSource) -> None:
        """Share hints with the other replicas from now on; those of this one come from `source`."""
        self._source, self._replicas.hints = source, source.allowed
        self._channel.listen(f"{TOPIC}>", self._receiver.receive)

    def connect(self, polls: Mapping[str, StreamPoll], sink: Callable[[Hint], None]) -> None:
        """Pass hints on to the sink. `polls`: the streams that are followed."""
        self._polls, self._sink = polls, sink

    def counts(self, stream: str) -> bool:
        """Whether what this replica itself receives of a stream counts: unless another one reads and shares it."""
        if stream not in self._polls:
            return False
        if self._source is None or not self._replicas.others:
            return True
        reader = self._replicas.others.get(self._shared.sender(stream))
        return reader is None or not reader.presence.hints

    def take(self, hint: Hint) -> None:
        """A hint came from the server."""
        if isinstance(hint, ConsumerChanged | StreamChanged | ApiLimited):
            self._sink(hint)
        elif self.counts(hint.key.stream):
            self._take(hint)

    def _take(self, hint: ConsumerHint) -> None:
        now, (stream, consumer) = self._clock.now(), hint.key
        self._receiver.count_own(stream, now)
        if not self._shares(stream):
            self.flush(stream)
            self._sink(hint)
        else:  # also of a consumer that only others watch
            batches = self._batches.setdefault(stream, {})
            if (batch := batches.get(consumer)) is None:
                batch = batches[consumer] = HintBatch(now)
            batch.add(hint, now)
            if batch.is_full(now) or len(batches) >= MOST_CONSUMERS:
                self.flush(stream)

    def _shares(self, stream: str) -> bool:
        """Whether others may count what this replica receives of a stream. Not what waited while it did not run itself:
        others may have counted that."""
        if self._source is None or not self._replicas.have_sharing:
            return False
        return self._shared.reads_all(stream) and self._shared.believes()

    def flush(self, stream: str) -> None:
        """Count and publish what came of a stream: it was just read, here or elsewhere."""
        batches = self._batches.pop(stream, None)
        if not batches:
            return
        now, lines = self._clock.now(), [(name, batch.to_line(0)) for name, batch in batches.items()]
        for name, line in lines:
            for hint in hints_of(ConsumerKey(stream, name), line, now):
                self._sink(hint)
        times = min(batch.started_at for batch in batches.values()), now.mono
        for message in encode_hints(self._replicas.id, self._numbers, times, lines, self._channel.longest()):
            self._channel.publish(topic_of(stream), message)

    def _wants(self, stream: str, sender: str, source: str) -> bool:
        """Whether hints of a stream that another replica sent may count."""
        if stream not in self._polls or self.counts(stream) or not self._shared.believes():
            return False
        return sender in (source, self._shared.sender(stream))

    # What is subscribed to

    def update(self, stream: str) -> None:
        """Which replica reads a stream may have changed."""
        if stream in self._batches and not self._shares(stream):
            self.flush(stream)
        if self.counts(stream) != (stream in self._own):
            (self._own.discard if stream in self._own else self._own.add)(stream)
            self._follow()

    def update_all(self) -> None:
        """A replica came or went, or reports something new."""
        self._own = set(filter(self.counts, self._polls))
        self._follow()

    def _follow(self) -> None:
        if self._source is not None:
            few = self._replicas.others and len(self._own) <= SUBSCRIBED_SINGLY
            self._source.follow(frozenset(self._own) if few else None)
