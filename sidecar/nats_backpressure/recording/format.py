"""What a recording holds: JSON lines, each of one thing that was observed, and how they are written and read.

Streams and consumers are introduced once and then go by a number, so that a line is small. A `read` line closes a
reading of a stream: the `sample` lines before it are those consumers that moved, all others it last showed are as they
were. Times are seconds, `at` is monotonic and Unix time. Recordings laid end to end are a recording.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Final, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from nats_backpressure.core.model import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.parse import OverrideEntry
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.timestamps import Now

FORMAT: Final = 1
"""Lines and fields that are unknown are added without a new number; a reader leaves them out."""
LONGEST_LINE: Final = 1 << 20
"""Bytes; a longer line is not read into memory."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=32_503_680_000)]
At = tuple[Seconds, Seconds]
Text = Annotated[str, Meta(max_length=4096)]


class RecordingBegun(Struct, frozen=True, tag_field="t", tag="recording"):
    """The first line of a recording, and of each part of one: numbers begin anew."""

    format: Count
    name: Text
    version: Text
    """Of the program that wrote it."""
    at: At
    longest_interval: Seconds = 0.0
    """The longest time that was let pass between two readings of a stream."""


class Stream(Struct, frozen=True, tag_field="t", tag="stream", omit_defaults=True):
    """A stream, as it is called from here on."""

    s: Count
    name: Text
    created: Text
    subjects: tuple[str, ...] = ()
    """Of a mirror: those of its origin."""
    origin: str | None = None
    retention: Retention | None = None
    """None in recordings made before it was written."""


class Consumer(Struct, frozen=True, tag_field="t", tag="consumer", omit_defaults=True):
    """A consumer, as it is called from here on; told again when its configuration is another."""

    c: Count
    s: Count
    name: Text
    created: Text
    config: ConsumerConfig = ConsumerConfig()


class Sampled(Struct, frozen=True, tag_field="t", tag="sample", omit_defaults=True):
    """A consumer that moved since its last line; a field left out is 0, null or as usual."""

    c: Count
    before: Seconds = 0.0
    """Seconds before the `read` line that closes its reading."""
    at: At | None = None
    """Where it was read by itself, outside any reading of its stream."""
    pending: Count = 0
    inflight: Count = 0
    redelivered: Count = 0
    waiting: Count = 0
    delivered: tuple[Count, Count] = (0, 0)
    """Stream and consumer sequence."""
    floor: tuple[Count, Count] = (0, 0)
    since_delivery: Seconds | None = None
    since_ack: Seconds | None = None
    paused: bool = False
    bound: bool = True


class Shape(Struct, frozen=True, omit_defaults=True):
    """What of a stream moves."""

    first: Count = 0
    last: Count = 0
    messages: Count = 0
    at_limit: bool = False
    fill: float | None = None
    oldest_age: Seconds | None = None


class ReadDone(Struct, frozen=True, tag_field="t", tag="read", omit_defaults=True):
    """A reading of a stream is complete, and its look at the stream was just taken."""

    s: Count
    at: At
    look: Shape | None = None
    """None if it is as it was, but for its age."""
    left: tuple[Count, ...] = ()
    """Consumers that were no longer there, in a reading that is not partly."""
    out: tuple[Count, ...] = ()
    """Consumers that were not shown any more, which says nothing of them; until they have a line again."""
    partly: bool = False
    """Whether what it lacks says nothing."""
    unread: Count = 0
    """How many consumers exist and could not be read: `out` names those of them that were shown before."""


class StreamMissing(Struct, frozen=True, tag_field="t", tag="missing"):
    """The server answered that the stream does not exist; its numbers mean nothing any more."""

    name: Text
    at: At


class Hinted(Struct, frozen=True, tag_field="t", tag="hints", omit_defaults=True):
    """What advisories and ack metrics said of a consumer, summed over a second at most."""

    c: Count
    at: At
    """When the newest came."""
    acks: tuple[tuple[Seconds, Count, Count], ...] = ()
    """Seconds from delivery to ack (within 0.5 %), deliveries, and how many such."""
    naks: Count = 0
    max_deliveries: Count = 0
    terminated: Count = 0


class Rule(Struct, frozen=True, tag_field="t", tag="rule", omit_defaults=True):
    """An entry of the file's policies or a key of the policy bucket is this from the next `rules` line on; with neither
    policy nor override it is no more."""

    layer: Literal["file", "bucket"]
    key: Text
    policy: dict[str, Any] | None = None
    override: OverrideEntry | None = None


class Rules(Struct, frozen=True, tag_field="t", tag="rules", omit_defaults=True):
    """The entries as they stand now are in force, with what else of the settings decides."""

    at: At
    guard: Guard = Guard()
    trust_metadata: bool = False
    watch: tuple[WatchEntry, ...] = (WatchEntry("*"),)
    stale_after: Seconds = 10.0
    unknown_after: Seconds = 30.0


CONSUMERS_LIMIT: Final = 100_000
"""Consumers kept in mind at a time: a writer leaves further ones out, a reader gives up."""

Line = RecordingBegun | Stream | Consumer | Sampled | ReadDone | StreamMissing | Hinted | Rule | Rules

_DECODER: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)
_ENCODER = msgspec.json.Encoder()


class BadRecording(Struct, frozen=True):
    """A line nobody can read, and why."""

    why: str


CUT = BadRecording("cut off, as when a recording is interrupted")


class NoRecording(Exception):
    """What was given is no recording, or cannot be read on."""


def encode(line: Line) -> bytes:
    return _ENCODER.encode(line) + b"\n"


def decode(data: bytes) -> Line | BadRecording:
    try:
        return _DECODER.decode(data)
    except msgspec.ValidationError as error:
        return BadRecording(str(error)[:200])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return BadRecording(f"not JSON: {str(error)[:200]}")


def lines(file: BinaryIO) -> Iterator[tuple[int, Line | BadRecording]]:
    """Every line with its number, one in memory at a time. Raises NoRecording if the file cannot be read on."""
    for n in itertools.count(1):
        try:
            data, too_long = _next(file)
        except EOFError:  # what a compressed file that was cut off ends with
            yield n, CUT
            return
        except (OSError, zlib.error) as error:
            raise NoRecording(f"line {n}: cannot be read on: {error}") from None
        if not data:
            return
        line = BadRecording(f"longer than {LONGEST_LINE:,} bytes") if too_long else decode(data)
        yield n, CUT if isinstance(line, BadRecording) and not data.endswith(b"\n") else line


def _next(file: BinaryIO) -> tuple[bytes, bool]:
    """A line, or the end of one that was too long."""
    data = file.readline(LONGEST_LINE)
    too_long = len(data) == LONGEST_LINE and not data.endswith(b"\n")
    while too_long and (more := file.readline(LONGEST_LINE)):
        data = more
        if data.endswith(b"\n"):
            break
    return data, too_long


def still(sample: Sample, at: Now) -> Sample:
    """The sample a consumer would show `at` a later moment if nothing happened: only the clock went on."""
    later = at.mono - sample.at.mono
    return replace(
        sample,
        at=at,
        since_delivery=None if sample.since_delivery is None else sample.since_delivery + later,
        since_ack=None if sample.since_ack is None else sample.since_ack + later,
    )


def aged(look: StreamLook, later: float) -> StreamLook:
    """The look at a stream so many seconds later, if nothing happened."""
    return look if look.oldest_age is None else replace(look, oldest_age=look.oldest_age + later)
