"""The file format of recordings: JSON lines, one for each observation, and how to encode, decode and read them.

Streams and consumers get a number in a line of their own; later lines use the number, so that they are small. A `read`
line closes a reading of a stream: the `sample` lines before it are the consumers that changed, all others that it
showed last are unchanged. Times are seconds; `at` is monotonic and Unix time. Several recordings one after another are
one recording.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Final, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from nats_backpressure.core.model.samples import ConsumerConfig, Retention, Sample, StreamLook
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.parse import OverrideEntry
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.timestamps import Now

FORMAT: Final = 1
"""New kinds of lines and new fields do not change it; a reader skips those it does not know."""
LONGEST_LINE: Final = 1 << 20
"""Bytes; a longer line is not read into memory."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=32_503_680_000)]
At = tuple[Seconds, Seconds]
Text = Annotated[str, Meta(max_length=4096)]


class HeaderLine(Struct, frozen=True, tag_field="t", tag="recording"):
    """The first line of a recording and of each of its parts: numbers start again."""

    format: Count
    name: Text
    version: Text
    """Version of the program that wrote it."""
    at: At
    longest_interval: Seconds = 0.0
    """The longest planned time between two readings of a stream."""


class StreamLine(Struct, frozen=True, tag_field="t", tag="stream", omit_defaults=True):
    """A stream, and its number from here on."""

    s: Count
    name: Text
    created: Text
    subjects: tuple[str, ...] = ()
    """For a mirror: those of its origin."""
    origin: str | None = None
    retention: Retention | None = None
    """None in older recordings."""


class ConsumerLine(Struct, frozen=True, gc=False, tag_field="t", tag="consumer", omit_defaults=True):
    """A consumer, and its number from here on; written again when its configuration changes."""

    c: Count
    s: Count
    name: Text
    created: Text
    config: ConsumerConfig = ConsumerConfig()


class SampleLine(Struct, frozen=True, gc=False, tag_field="t", tag="sample", omit_defaults=True):
    """A consumer that changed since its last line; an omitted field has its default."""

    c: Count
    before: Seconds = 0.0
    """Seconds before the `read` line that closes its reading."""
    at: At | None = None
    """Set if the consumer was read alone, outside a reading of its stream."""
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


class StreamNumbers(Struct, frozen=True, gc=False, omit_defaults=True):
    """The numbers of a stream that change."""

    first: Count = 0
    last: Count = 0
    messages: Count = 0
    at_limit: bool = False
    fill: float | None = None
    oldest_age: Seconds | None = None


class ReadLine(Struct, frozen=True, tag_field="t", tag="read", omit_defaults=True):
    """The end of a reading of a stream, and the look at the stream after it."""

    s: Count
    at: At
    look: StreamNumbers | None = None
    """None if nothing but its age changed."""
    left: tuple[Count, ...] = ()
    """Consumers that no longer exist; only if `partly` is false."""
    out: tuple[Count, ...] = ()
    """Consumers that are not shown any more, until they have a line again; they may still exist."""
    partly: bool = False
    """Whether there may be consumers that it does not show."""
    only: bool = False
    """Whether only the consumers with a line since the `read` line before were read, and all others were not."""
    unread: Count = 0
    """Number of consumers that exist and could not be read; `out` has those of them that were shown before."""


class MissingLine(Struct, frozen=True, tag_field="t", tag="missing"):
    """The server answered that the stream does not exist; its number and those of its consumers are free."""

    name: Text
    at: At


class HintsLine(Struct, frozen=True, tag_field="t", tag="hints", omit_defaults=True):
    """Advisories and ack metrics of a consumer, summed over at most one second."""

    c: Count
    at: At
    """Time of the newest one."""
    acks: tuple[tuple[Seconds, Count, Count], ...] = ()
    """Seconds from delivery to ack (within 0.5 %), deliveries, and the number of such acks."""
    naks: Count = 0
    max_deliveries: Count = 0
    terminated: Count = 0


class PolicyLine(Struct, frozen=True, tag_field="t", tag="rule", omit_defaults=True):
    """An entry of the file's policies or of the policy bucket, from the next `rules` line on; without policy and
    override the entry is removed."""

    layer: Literal["file", "bucket"]
    key: Text
    policy: dict[str, Any] | None = None
    override: OverrideEntry | None = None


class PoliciesLine(Struct, frozen=True, tag_field="t", tag="rules", omit_defaults=True):
    """Puts the current entries in force, with the other settings that an evaluation depends on."""

    at: At
    guard: Guard = Guard()
    trust_metadata: bool = False
    watch: tuple[WatchEntry, ...] = (WatchEntry("*"),)
    stale_after: Seconds = 10.0
    unknown_after: Seconds = 30.0


CONSUMERS_LIMIT: Final = 100_000
"""Most consumers at a time: a writer leaves further ones out, a reader stops."""

Line = (
    HeaderLine | StreamLine | ConsumerLine | SampleLine | ReadLine | MissingLine | HintsLine | PolicyLine | PoliciesLine
)

_DECODER: Final[msgspec.json.Decoder[Line]] = msgspec.json.Decoder(Line)
_ENCODER = msgspec.json.Encoder()


class BadLine(Struct, frozen=True):
    """A line that cannot be read, and why."""

    why: str


CUT_OFF = BadLine("cut off, as when a recording is interrupted")


class UnreadableRecording(Exception):
    """The file is not a recording, or cannot be read any further."""


def encode_line(line: Line) -> bytes:
    return _ENCODER.encode(line) + b"\n"


def decode_line(data: bytes) -> Line | BadLine:
    try:
        return _DECODER.decode(data)
    except msgspec.ValidationError as error:
        return BadLine(str(error)[:200])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        return BadLine(f"not JSON: {str(error).removeprefix('JSON is malformed: ')[:200]}")


def read_lines(file: BinaryIO) -> Iterator[tuple[int, Line | BadLine]]:
    """Every line with its number, one in memory at a time. Raises UnreadableRecording if the file cannot be read."""
    for n in itertools.count(1):
        try:
            data, too_long = _read_line(file)
        except EOFError:  # at the end of a compressed file that was cut off
            yield n, CUT_OFF
            return
        except (OSError, zlib.error) as error:
            raise UnreadableRecording(f"line {n}: cannot be read any further: {error}") from None
        if not data:
            return
        line = BadLine(f"longer than {LONGEST_LINE:,} bytes") if too_long else decode_line(data)
        yield n, CUT_OFF if isinstance(line, BadLine) and not data.endswith(b"\n") else line


def _read_line(file: BinaryIO) -> tuple[bytes, bool]:
    """A line, or the end of one that is too long."""
    data = file.readline(LONGEST_LINE)
    too_long = len(data) == LONGEST_LINE and not data.endswith(b"\n")
    while too_long and (more := file.readline(LONGEST_LINE)):
        data = more
        if data.endswith(b"\n"):
            break
    return data, too_long


def idle_sample(sample: Sample, at: Now) -> Sample:
    """The sample that the consumer would show at a later time if nothing happened."""
    later = at.mono - sample.at.mono
    return replace(
        sample,
        at=at,
        since_delivery=None if sample.since_delivery is None else sample.since_delivery + later,
        since_ack=None if sample.since_ack is None else sample.since_ack + later,
    )


def idle_look(look: StreamLook, later: float) -> StreamLook:
    """The look at the stream this many seconds later, if nothing happened."""
    return look if look.oldest_age is None else replace(look, oldest_age=look.oldest_age + later)
