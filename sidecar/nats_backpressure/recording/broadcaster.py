"""Shares what this replica reads: passes every reading on, and hands it to the sender."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from nats_backpressure.core.model.samples import Sample
from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.broadcast_numbers import AskedFor
from nats_backpressure.recording.broadcast_sender import Unsent
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from nats_backpressure.runtime.ports import Observer, TimeSource
from nats_backpressure.runtime.shared_reading import SharedReading


class BroadcastingObserver:
    """An Observer that passes the readings of another one to `send`, too, by stream, while others want them."""

    def __init__(
        self,
        observer: Observer,
        clock: TimeSource,
        shared: SharedReading,
        send: Callable[[str, Unsent], None],
        are_wanted: Callable[[], bool],
    ) -> None:
        self._observer, self._clock, self._shared = observer, clock, shared
        self._send_reading, self._are_wanted = send, are_wanted

    async def streams(self) -> StreamsReading:
        asked = self._asked()
        reading = await self._observer.streams()
        self._send(ALL_STREAMS, reading, asked)
        return reading

    async def stream(self, name: str) -> StreamsReading:
        asked = self._asked()
        reading = await self._observer.stream(name)
        self._send(ALL_STREAMS, replace(reading, partial=True), asked)
        return reading

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        asked = self._asked(stream)
        reading = await self._observer.consumers(stream, names)
        self._send(stream, reading, asked)
        return reading

    async def consumer(self, key: ConsumerKey) -> Sample:
        asked = self._asked(key.stream)
        sample = await self._observer.consumer(key)
        self._send(key.stream, sample, asked)
        return sample

    def _asked(self, stream: str = "") -> AskedFor:
        return AskedFor(self._clock.now().mono, self._shared.look_of(stream) if stream else None)

    def _send(self, stream: str, shown: ConsumersReading | StreamsReading | Sample, asked: AskedFor) -> None:
        if self._are_wanted():
            position = self._shared.position(stream, partial=isinstance(shown, Sample) or shown.partial)
            self._send_reading(stream, Unsent(shown, asked, position, self._clock.now()))
