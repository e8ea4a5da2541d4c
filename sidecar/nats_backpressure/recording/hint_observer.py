"""HintObserver: an Observer that has the ack metrics and advisories of a stream counted before each of its readings."""

from __future__ import annotations

from collections.abc import Sequence

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.hint_exchange import HintExchange
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from nats_backpressure.runtime.ports import Observer


class HintObserver:
    """Passes on the readings of another one. A stream is subscribed to before it is read."""

    def __init__(self, observer: Observer, hints: HintExchange) -> None:
        self._observer, self._hints = observer, hints

    async def streams(self) -> StreamsReading:
        return await self._observer.streams()

    async def stream(self, name: str) -> StreamsReading:
        return await self._observer.stream(name)

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        self._hints.update(stream)
        reading = await self._observer.consumers(stream, names)
        self._hints.flush(stream)
        return reading

    async def consumer(self, key: ConsumerKey) -> Sample:
        self._hints.update(key.stream)
        sample = await self._observer.consumer(key)
        self._hints.flush(key.stream)
        return sample
