"""RepeatedConsumers: recognises consumers that a list shows as the one before did, so that they are not decoded.

Of 10,000 consumers nearly all rest: to decode each again and again was a half of what reading them costs.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Raw, Struct
from msgspec.json import Decoder
from msgspec.structs import replace

from nats_backpressure.adapters.nats.api_types import ConsumerInfo, from_leader
from nats_backpressure.adapters.nats.repeated_list import TIME, VARIES
from nats_backpressure.core.model.samples import Sample
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.tasks import Bounded

MOST_STREAMS = 4096
"""Streams of which the newest list is remembered; beyond, the one that was listed longest ago is dropped."""
_CONSUMER = Decoder(ConsumerInfo)


class Listed(Struct, frozen=True, gc=False):
    """One consumer in a list."""

    name: str
    text: int
    """Stands for what was sent of it, but for its times."""
    shown: ConsumerInfo | Sample
    """Its sample in the list before, where that says the same."""


class RepeatedConsumers:
    """The samples of the newest list of each stream, by text: no more than exist. A text is a hash of 64 bits, with a
    key that only this process knows."""

    def __init__(self) -> None:
        self._streams: Bounded[str, Mapping[int, Sample]] = Bounded(MOST_STREAMS)

    def remember(self, stream: str, samples: Mapping[int, Sample]) -> None:
        self._streams[stream] = samples
        self._streams.move_to_end(stream)

    def of(self, stream: str) -> KnownConsumers:
        return KnownConsumers(self._streams.get(stream, {}))


class KnownConsumers:
    """Those of one stream."""

    def __init__(self, samples: Mapping[int, Sample]) -> None:
        self._samples = samples

    def read(self, item: Raw) -> Listed:
        """Raises what a decoder raises, and NoLeader."""
        text = _text(bytes(item))
        if (known := self._samples.get(text)) is not None:
            return Listed(known.key.consumer, text, known)
        info = _CONSUMER.decode(item)
        return Listed(info.name, text, from_leader(info, info.name))


def again(sample: Sample, at: Now) -> Sample:
    """The sample of a consumer that was listed again `at` this time, and shows the same."""
    later = at.mono - sample.at.mono
    delivery, ack = sample.since_delivery, sample.since_ack
    return replace(
        sample,
        at=at,
        since_delivery=None if delivery is None else max(0.0, delivery + later),
        since_ack=None if ack is None else max(0.0, ack + later),
    )


def _text(item: bytes) -> int:
    if b'"active":' in item:  # a cluster
        return hash(VARIES.sub(b"", item))
    start = item.rfind(TIME)
    return hash(item if start < 0 else (item[:start], item[item.find(b'"', start + len(TIME)) :]))
