"""`replay`: evaluates a recording again, with the recorded or other policies, and prints what would be published."""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import click
import msgspec
from click.core import ParameterSource

from nats_backpressure.cli.options import json_option
from nats_backpressure.cli.settings_file import load_or_exit
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.protocol.patterns import pattern_problem
from nats_backpressure.queries.serialize import event_message as rendered
from nats_backpressure.queries.serialize import format_time, metrics_message, round_finite
from nats_backpressure.recording.compare import Difference, StatusComparison
from nats_backpressure.recording.decoder import Decoder
from nats_backpressure.recording.format import CUT_OFF, BadLine, UnreadableRecording, read_lines
from nats_backpressure.recording.replay import Replay

EX_DATA = 65
"""The exit code of sysexits.h for input data that cannot be used."""
BAD_SHOWN = 20
"""Unreadable lines reported one by one; further ones are counted."""
SUBJECTS_SHOWN = 20
"""Subjects in the summary: those that differed or were active longest."""

TimeIn = Mapping[str, Mapping[str, float]]
"""Seconds by subject and status."""


@click.command(short_help="Evaluate a recording again.")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="BACKPRESSURE_CONFIG",
    help="Settings file with the policies to use.  [default: $BACKPRESSURE_CONFIG, else the recorded policies]",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Second settings file: print only where its statuses differ from those of the first.",
)
@click.option("--subject", metavar="PATTERN", help="Evaluate only subjects that match this pattern.")
@json_option("One JSON object per line; the summary goes to standard error.")
def replay(file: Path, config: Path | None, compare: Path | None, subject: str | None, as_json: bool) -> None:
    """Evaluate a recording again: print the events that would be published, and why. `run --record` and `record`
    write FILE.

    Without --config, the policies that were in force during the recording are used. FILE may be `-` (standard input)
    or end in .gz; several recordings joined with `cat` are one recording. Exits with 0, with 78 and one line for each
    mistake in a settings file, or with 65 if FILE is not a recording.
    """
    if subject is not None and (problem := pattern_problem(subject)):
        raise click.BadParameter(problem, param_hint="--subject")
    paths = (config,) if compare is None else (config, compare)
    settings = [None if path is None else load_or_exit(path) for path in paths]
    comparison = StatusComparison(partial(_print_difference, as_json))
    on_event = partial(_print_event, as_json)
    replays: list[Replay] = []
    for which, each in enumerate(settings):
        on_each = on_event if compare is None else partial(_compare_event, comparison, replays, which)
        replays.append(Replay(each, on_each, subject))
    if config is not None and click.get_current_context().get_parameter_source("config") is ParameterSource.ENVIRONMENT:
        click.echo(f"{file}: under the policies of {config} (BACKPRESSURE_CONFIG), not the recorded ones", err=True)
    start = time.perf_counter()
    problem = _replay_file(file, replays, comparison)
    took = time.perf_counter() - start
    if replays[0].first and not replays[0].has_policies:
        click.echo(f"{file}: has no policies: the defaults are used (see --config)", err=True)
    if replays[0].first or not problem:
        for line in _summary(replays, comparison, took):
            click.echo(line, err=as_json)
    if problem:
        click.echo(f"{file}: {problem}", err=True)
        sys.exit(EX_DATA)


def _compare_event(comparison: StatusComparison, replays: Sequence[Replay], which: int, event: SubjectEvent) -> None:
    comparison.add_event(which, event, replays[which].now.mono)


def _replay_file(path: Path, replays: Sequence[Replay], comparison: StatusComparison) -> str | None:
    """Evaluate every line. Returns why the file could not be read to its end, or None."""
    decoder, bad, n = Decoder(), 0, 0
    try:
        with _open_recording(path) as file:
            for n, line in read_lines(file):
                observation = line if isinstance(line, BadLine) else decoder.decode(line)
                if isinstance(observation, BadLine):
                    bad += observation is not CUT_OFF
                    if bad <= BAD_SHOWN:
                        click.echo(f"{path}:{n}: {observation.why}; the line is skipped", err=True)
                elif observation is not None:
                    for each in replays:
                        each.process(observation, decoder.longest_interval)
                    comparison.compare()
        if decoder.header is None:
            return "not a recording: " + ("no readable line in it" if n else "it is empty")
    except UnreadableRecording as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    finally:
        if bad > BAD_SHOWN:
            click.echo(f"{path}: {bad - BAD_SHOWN:,} more unreadable lines were skipped", err=True)
    return None


@contextmanager
def _open_recording(path: Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
    elif path.suffix == ".gz":
        with gzip.open(path, "rb") as file:
            yield cast(BinaryIO, file)
    else:
        with path.open("rb") as file:
            yield file


def _print_event(as_json: bool, event: SubjectEvent) -> None:
    click.echo(msgspec.json.encode(rendered(event, "replay")) if as_json else _format_event(event))


def _format_event(event: SubjectEvent) -> str:
    """One line: time, subject, from and to, type, reasons, and what was measured."""
    shown = metrics_message(event.reading, event.marks)
    facts = {
        "pressure": round_finite(event.pressure, 2),
        "pending": shown.pending_messages,
        "inflight": shown.inflight_messages,
        "p95_ms": shown.latency_p95_ms,
        "drain_s": shown.drain_seconds,
        "diagnosis": event.diagnosis and event.diagnosis.value,
        "lost": event.lost,
        "alert": event.alert and event.alert.name,
    }
    measured = "  ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    change = f"{event.was.word} -> {event.now.word}  {event.type}"
    return f"{format_time(event.at)}  {event.subject}  {change}  [{', '.join(event.reasons)}]  {measured}".rstrip()


def _print_difference(as_json: bool, difference: Difference) -> None:
    at, lasted = format_time(difference.at), difference.lasted
    both = [(status.word, reasons) for status, reasons in zip(difference.statuses, difference.reasons, strict=True)]
    if as_json:
        first, second = ({"status": status, "reasons": reasons} for status, reasons in both)
        fields = {"timestamp": at, "subject": difference.subject, "config": first, "compare": second}
        click.echo(msgspec.json.encode(fields | {"differed_seconds": round_finite(lasted, 3)}))
    elif lasted is not None:
        click.echo(f"{at}  {difference.subject}  both {both[0][0]}, after {lasted:,.1f} s")
    else:
        texts = [f"{status} [{', '.join(reasons)}]" for status, reasons in both]
        click.echo(f"{at}  {difference.subject}  {texts[0]} | {texts[1]}")


def _summary(replays: Sequence[Replay], comparison: StatusComparison, took: float) -> Iterator[str]:
    first = replays[0]
    span = first.now.mono - first.first.mono if first.first else 0.0
    if first.first:
        comparison.finish(first.now.mono)
        yield ""
        yield f"{format_time(first.first.wall)} to {format_time(first.now.wall)}, {_format_duration(span)}"
    aside = f", {first.implausible:,} of them implausible" if first.implausible else ""
    samples = sum(each.samples for each in replays)
    speed = f"{samples / took:,.0f} samples/s, {span / took:,.0f} times as fast as it happened"
    yield f"{first.samples:,} samples{aside}; evaluated in {took:.1f} s: {speed}"
    yield _format_counts("events", [each.events for each in replays], lambda n: f"{n:,.0f}")
    times = [each.time_in() for each in replays]
    subjects = sorted({s for time in times for s in time}, key=lambda s: _urgency(s, times, comparison))
    for subject in subjects[:SUBJECTS_SHOWN]:
        seconds = comparison.seconds.get(subject, 0.0)
        differ = f"; differed for {_format_duration(seconds)}" if seconds else ""
        yield _format_counts(subject, [time.get(subject, {}) for time in times], _format_duration) + differ
    if len(subjects) > SUBJECTS_SHOWN:
        yield f"and {len(subjects) - SUBJECTS_SHOWN:,} more subjects"
    if any(each.removed_time_in for each in replays):
        yield _format_counts("removed subjects", [each.removed_time_in for each in replays], _format_duration)


def _urgency(subject: str, times: Sequence[TimeIn], comparison: StatusComparison) -> tuple[float | str, ...]:
    """Sort key: the longest difference first, then the longest active, then the longest in warning."""
    longest = [max(time.get(subject, {}).get(word, 0.0) for time in times) for word in ("active", "warning")]
    return -comparison.seconds.get(subject, 0.0), *(-seconds for seconds in longest), subject


def _format_counts(what: str, each: Sequence[Mapping[str, float]], shown: Callable[[float], str]) -> str:
    """`a.b: active 3.0 s, warning 1.0 s`; where two are compared, `active 3.0 s | 0.0 s`."""
    names = sorted({name for counts in each for name in counts})
    parts = [f"{name} {' | '.join(shown(counts.get(name, 0)) for counts in each)}" for name in names]
    return f"{what}: {', '.join(parts) or 'none'}"


def _format_duration(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
