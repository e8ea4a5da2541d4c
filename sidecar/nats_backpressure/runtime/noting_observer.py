"""NotingObserver: an Observer that notes for the log which readings keep failing."""

from __future__ import annotations

from collections.abc import Sequence

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.failures import Failures
from nats_backpressure.runtime.observations import ConsumersReading, StreamGone, StreamsReading
from nats_backpressure.runtime.ports import Observer


class NotingObserver:
    """Passes everything on; a list of streams or of a stream's consumers that fails is noted."""

    def __init__(self, observer: Observer, failures: Failures) -> None:
        self._observer, self._failures = observer, failures

    async def streams(self) -> StreamsReading:
        with self._failures.stage("list streams"):
            return await self._observer.streams()

    async def stream(self, name: str) -> StreamsReading:
        return await self._observer.stream(name)

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        if names:
            return await self._observer.consumers(stream, names)
        try:
            with self._failures.stage("read consumers", stream):
                return await self._observer.consumers(stream)
        except StreamGone:
            self._failures.works("read consumers", stream)
            raise

    async def consumer(self, key: ConsumerKey) -> Sample:
        return await self._observer.consumer(key)
