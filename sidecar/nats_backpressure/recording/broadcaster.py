"""Shares what this replica reads: passes every reading on, and publishes it to the other replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.broadcast_encoder import Asked, ListEncoder, ReadingEncoder
from nats_backpressure.recording.broadcast_format import topic_of
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from nats_backpressure.runtime.ports import Clock, Observer
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.tasks import Bounded

MOST_STREAMS = 100_000
"""Streams whose last message is remembered; of one that was dropped the next message is whole."""


class BroadcastingObserver:
    """An Observer that publishes the readings of another one, while there is another replica. `whole_every`: seconds
    after which a message shows all, not only what changed."""

    def __init__(
        self,
        observer: Observer,
        clock: Clock,
        shared: SharedReading,
        sender: str,
        publish: Callable[[str, bytes], None],
        has_others: Callable[[], bool],
        whole_every: float,
    ) -> None:
        self._observer, self._clock, self._shared = observer, clock, shared
        self._sender, self._publish, self._has_others, self._whole_every = sender, publish, has_others, whole_every
        self._lists = ListEncoder(sender, whole_every)
        self._readings: Bounded[str, ReadingEncoder] = Bounded(MOST_STREAMS)

    def send_whole(self) -> None:
        """Another replica is new: the next message of each stream shows all."""
        self._lists.messages.whole_wanted = True
        for encoder in self._readings.values():
            encoder.messages.whole_wanted = True

    async def streams(self) -> StreamsReading:
        asked = self._asked()
        reading = await self._observer.streams()
        if self._has_others():
            position = self._shared.position(ALL_STREAMS)
            self._send(ALL_STREAMS, self._lists.streams(reading, asked, position, self._clock.now()))
        return reading

    async def stream(self, name: str) -> StreamsReading:
        asked = self._asked()
        reading = await self._observer.stream(name)
        if self._has_others():
            position = self._shared.position(ALL_STREAMS)
            self._send(ALL_STREAMS, self._lists.look(reading, asked, position, self._clock.now()))
        return reading

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        asked = self._asked(stream)
        reading = await self._observer.consumers(stream, names)
        if self._has_others():
            position = self._shared.position(stream)
            self._send(stream, self._encoder(stream).reading(reading, asked, position, self._clock.now()))
        return reading

    async def consumer(self, key: ConsumerKey) -> Sample:
        asked = self._asked(key.stream)
        sample = await self._observer.consumer(key)
        if self._has_others():
            position = self._shared.position(key.stream)
            self._send(key.stream, self._encoder(key.stream).sample(sample, asked, position, self._clock.now()))
        return sample

    def _asked(self, stream: str = "") -> Asked:
        return Asked(self._clock.now().mono, self._shared.look_of(stream) if stream else None)

    def _encoder(self, stream: str) -> ReadingEncoder:
        if (encoder := self._readings.get(stream)) is None:
            encoder = self._readings[stream] = ReadingEncoder(self._sender, self._whole_every)
        return encoder

    def _send(self, stream: str, chunks: Sequence[bytes]) -> None:
        for chunk in chunks:
            self._publish(topic_of(stream), chunk)
