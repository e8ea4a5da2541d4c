"""Reads all streams and consumers through the JetStream API, page by page, with raw requests.

nats-py reads one page only, without `missing`, `offline` and `ts`. A malformed item is left out and counted, and the
rest of its page is used; fields that a newer server adds are ignored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress

import msgspec
from msgspec import Raw

from nats_backpressure.adapters.nats.api_types import ConsumerInfo, StreamInfo, StreamInfoConfig, from_leader
from nats_backpressure.adapters.nats.list_reader import ListReader
from nats_backpressure.adapters.nats.observer_requests import Answer, ObserverRequests, name_token
from nats_backpressure.adapters.nats.repeated_consumers import Listed, RepeatedConsumers, again
from nats_backpressure.adapters.nats.repeated_list import RepeatedList, server_time
from nats_backpressure.adapters.nats.samples import policy_metadata, sample, stream_look
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import (
    ConsumerGone,
    ConsumersReading,
    StreamGone,
    StreamsReading,
    Unavailable,
)
from nats_backpressure.runtime.slices import Slices

FIRST_PAGE = b'{"offset":0}'
SINGLE_TIMEOUT = 1.0
"""Seconds for one consumer among several that are read one by one; one that does not answer counts as missing."""
SINGLES_AT_ONCE = 4
"""Of those, how many are asked for at once."""
MISSING_AT_ONCE = 4
"""Consumers that lists left out which are asked for at once: each may take TIMEOUT."""

_STREAM = msgspec.json.Decoder(StreamInfo[StreamInfoConfig])
_CONSUMER = msgspec.json.Decoder(ConsumerInfo)


class JetStreamObserver:
    """The Observer. A reading uses one connection; it raises StreamGone, ConsumerGone or Unavailable."""

    def __init__(self, requests: ObserverRequests) -> None:
        self._requests, self._clock, self._count = requests, requests.clock, requests.dropped
        self._lists = ListReader(requests)
        self._repeated, self._consumers = RepeatedList(), RepeatedConsumers()
        self._missing_turn = asyncio.Semaphore(MISSING_AT_ONCE)

    async def stream(self, name: str) -> StreamsReading:
        epoch = self._requests.epoch
        info = await self._requests.ask(f"STREAM.INFO.{name_token(name)}", b"")
        self._requests.check_connection(epoch)
        return StreamsReading((self._look(info, name),), False, info.took, epoch, trip=info.trip)

    async def streams(self) -> StreamsReading:
        epoch = self._requests.epoch
        first = await self._requests.ask("STREAM.LIST", FIRST_PAGE)
        self._requests.check_connection(epoch)
        at = server_time(first.data)
        if (looks := self._repeated.looks(first.data)) is not None:
            return StreamsReading(looks, True, first.took, epoch, server_time=at, trip=first.trip)
        listed = await self._lists.read("STREAM.LIST", _Streams(), lambda stream: stream.config.name, first)
        self._requests.check_connection(epoch)
        looks = tuple(stream_look(stream) for stream, _ in listed.items.values())
        complete = listed.complete and not (listed.missing or listed.malformed or listed.unnamed)
        self._repeated.remember(first.data, looks if complete and listed.pages == 1 else None)
        missing, named = tuple(sorted(listed.missing)), listed.complete and not (listed.malformed or listed.unnamed)
        took = listed.seconds, epoch
        return StreamsReading(looks, complete, *took, server_time=at, missing=missing, named=named, trip=listed.trip)

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        """The consumers first, then the stream: in this order the pending messages are within what the stream holds."""
        if names:
            return await self._singly(stream, names)
        epoch = self._requests.epoch
        known = self._consumers.of(stream)
        listed = await self._lists.read(f"CONSUMER.LIST.{name_token(stream)}", known, lambda consumer: consumer.name)
        info = await self._requests.ask(f"STREAM.INFO.{name_token(stream)}", b"")
        self._requests.check_connection(epoch)
        look = self._look(info, stream)
        samples, slices = dict[int, Sample](), Slices(self._clock)
        for consumer, at in _moved_first(listed.items.values()):
            shown = consumer.shown  # a sample that repeats counts no `metadata_left_out` again
            samples[consumer.text] = again(shown, at) if isinstance(shown, Sample) else self._sample(stream, shown, at)
            if slices.over:
                await slices.pause()
        self._consumers.remember(stream, samples)
        missing = tuple(sorted(listed.missing - listed.items.keys()))
        malformed = tuple(sorted(listed.malformed - listed.items.keys()))
        took, trip = info.took + listed.seconds, info.trip + listed.trip
        read = tuple(samples.values())
        return ConsumersReading(look, read, missing, listed.complete, malformed, took, epoch, listed.unnamed, trip=trip)

    async def _singly(self, stream: str, names: Sequence[str]) -> ConsumersReading:
        samples: dict[str, Sample] = {}
        took = trip = 0.0
        names_to_read = iter(names)

        async def read() -> None:
            nonlocal took, trip
            for name in names_to_read:
                with suppress(Unavailable, ConsumerGone, StreamGone):  # STREAM.INFO decides about the stream
                    op = f"CONSUMER.INFO.{name_token(stream)}.{name_token(name)}"
                    one = await self._requests.ask(op, b"", SINGLE_TIMEOUT)
                    samples[name] = self._read(stream, name, one)
                    took, trip = took + one.took, trip + one.trip

        epoch = self._requests.epoch
        await asyncio.gather(*(read() for _ in names[:SINGLES_AT_ONCE]))
        info = await self._requests.ask(f"STREAM.INFO.{name_token(stream)}", b"")
        self._requests.check_connection(epoch)
        look = self._look(info, stream)
        missing = tuple(name for name in names if name not in samples)
        read_all, took, trip = tuple(samples.values()), took + info.took, trip + info.trip
        return ConsumersReading(look, read_all, missing, False, (), took, epoch, partial=True, trip=trip)

    async def consumer(self, key: ConsumerKey) -> Sample:
        async with self._missing_turn:
            epoch = self._requests.epoch
            op = f"CONSUMER.INFO.{name_token(key.stream)}.{name_token(key.consumer)}"
            info = await self._requests.ask(op, b"")
            self._requests.check_connection(epoch)
        return self._read(key.stream, key.consumer, info)

    def _look(self, answer: Answer, name: str) -> StreamLook:
        return stream_look(from_leader(self._requests.decoded(_STREAM, answer.data), name))

    def _read(self, stream: str, name: str, answer: Answer) -> Sample:
        info = from_leader(self._requests.decoded(_CONSUMER, answer.data), name)
        return self._sample(stream, info, answer.at)

    def _sample(self, stream: str, info: ConsumerInfo, at: Now) -> Sample:
        metadata, left_out = policy_metadata(info.config.metadata or {})
        if left_out:
            self._count("metadata_left_out")
        return sample(stream, info, at, metadata)


def _moved_first(listed: Collection[tuple[Listed, Now]]) -> Iterator[tuple[Listed, Now]]:
    """In a list of hundreds the one that overloads waits for none of those that show what they showed before."""
    yield from (one for one in listed if not isinstance(one[0].shown, Sample))
    yield from (one for one in listed if isinstance(one[0].shown, Sample))


class _Streams:
    def read(self, item: Raw) -> StreamInfo[StreamInfoConfig]:
        stream = _STREAM.decode(item)
        return from_leader(stream, stream.config.name)
