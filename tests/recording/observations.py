"""Samples and readings to record, and recorded lines decoded again."""

from __future__ import annotations

import io
from typing import Any

from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording.decoder import (
    Decoder,
    Observation,
)
from nats_backpressure.recording.format import (
    BadLine,
    Line,
    read_lines,
)
from nats_backpressure.runtime.observations import (
    ConsumersReading,
)
from tests.support.recordings import MONO, WALL, beginning, written

LOOK = StreamLook("S", "t0", 1, 100, 100, ("a.>",), oldest_age=50.0)

KEY = ConsumerKey("S", "c")


def now(at: float) -> Now:
    return Now(MONO + at, WALL + at)


def sample(at: float = 0.0, name: str = "c", **fields: Any) -> Sample:
    whole = dict.fromkeys(("delivered_stream", "delivered_consumer", "floor_stream", "floor_consumer"), 5)
    whole |= dict.fromkeys(("pending", "inflight", "redelivered", "waiting"), 0)
    return Sample(key=ConsumerKey("S", name), created="t1", config=ConsumerConfig(), at=now(at), **(whole | fields))


def seen(*samples: Sample, look: StreamLook = LOOK, **fields: Any) -> ConsumersReading:
    whole = {"missing": (), "complete": True, "malformed": (), "took": 0.001, "trip": 0.0004, "epoch": 1}
    return ConsumersReading(look, samples, **(whole | fields))


def back(lines: list[Line]) -> list[Observation]:
    """What lines come to, read as a file is."""
    decoded = []
    reader = Decoder()
    for n, line in read_lines(io.BytesIO(written([*beginning()[:1], *lines]))):
        assert not isinstance(line, BadLine), (n, line)
        thing = reader.decode(line)
        assert not isinstance(thing, BadLine), (n, thing)
        if thing is not None:
            decoded.append(thing)
    return decoded
