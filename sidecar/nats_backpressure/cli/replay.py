"""`replay`: an incident judged again, under any policies, before they are applied."""

from __future__ import annotations

import gzip
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import click
import msgspec

from nats_backpressure.config.settings import BadSettings, Settings, load_settings
from nats_backpressure.core.model import Event
from nats_backpressure.protocol.patterns import pattern_problem
from nats_backpressure.queries.serialize import event as rendered
from nats_backpressure.queries.serialize import metrics, moment, number
from nats_backpressure.recording.compare import Difference, Differences
from nats_backpressure.recording.decoder import Decoder
from nats_backpressure.recording.format import CUT, BadRecording, NoRecording, lines
from nats_backpressure.recording.replay import Replay

EX_DATA = 65
"""The exit code of sysexits.h for input that is not what it should be."""
EX_CONFIG = 78
"""The exit code of sysexits.h for a configuration that cannot be used."""
BAD_SHOWN = 20
"""Lines that cannot be read and are told one by one; further ones are counted."""
SUBJECTS_SHOWN = 20
"""Subjects in the summary: those that differ or were active longest."""

TimeIn = Mapping[str, Mapping[str, float]]
"""Seconds by subject and status."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--config", type=click.Path(path_type=Path), envvar="BACKPRESSURE_CONFIG", help="Other policies.")
@click.option("--compare", type=click.Path(path_type=Path), help="Other policies: print only where the two differ.")
@click.option("--subject", metavar="PATTERN", help="Judge only subjects that match.")
@click.option("--json", "as_json", is_flag=True, help="One object a line; the summary goes to standard error.")
def replay(file: Path, config: Path | None, compare: Path | None, subject: str | None, as_json: bool) -> None:
    """Judge FILE, a recording of `run --record`, again: print what would have been told, and why.

    Without --config it is judged by the policies that were in force when it was recorded. FILE may be `-` (standard
    input) or end in .gz; parts laid end to end are one recording. Exits with 0, with 78 and one line for each mistake
    in a configuration, or with 65 if FILE is no recording.
    """
    if subject is not None and (problem := pattern_problem(subject)):
        raise click.BadParameter(problem, param_hint="--subject")
    paths = (config,) if compare is None else (config, compare)
    settings = [None if path is None else _settings(path) for path in paths]
    differences = Differences(partial(_tell_difference, as_json))
    tell = partial(_tell_event, as_json)
    replays = [
        Replay(each, tell if compare is None else partial(differences.hear, which), subject)
        for which, each in enumerate(settings)
    ]
    began = time.perf_counter()
    problem = _play(file, replays, differences)
    took = time.perf_counter() - began
    if replays[0].first and not replays[0].ruled:
        click.echo(f"{file}: holds no policies (an older version wrote it): judged by the default ones", err=True)
    if replays[0].first or not problem:
        for line in _summary(replays, differences, took):
            click.echo(line, err=as_json)
    if problem:
        click.echo(f"{file}: {problem}", err=True)
        sys.exit(EX_DATA)


def _settings(path: Path) -> Settings:
    try:
        return load_settings(path, os.environ)
    except BadSettings as bad:
        for line in bad.lines:
            click.echo(line, err=True)
        sys.exit(EX_CONFIG)


def _play(path: Path, replays: Sequence[Replay], differences: Differences) -> str | None:
    """Judge every line; why it could not be read to its end, or None."""
    longhand, bad = Decoder(), 0
    try:
        with _opened(path) as file:
            for n, line in lines(file):
                found = line if isinstance(line, BadRecording) else longhand.take(line)
                if isinstance(found, BadRecording):
                    bad += found is not CUT
                    if bad <= BAD_SHOWN:
                        click.echo(f"{path}:{n}: {found.why}; left out", err=True)
                elif found is not None:
                    for each in replays:
                        each.take(found, longhand.longest_interval)
                    differences.settle()
        if longhand.begun is None:
            return "no recording: it is empty"
    except NoRecording as error:
        return str(error)
    except OSError as error:
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    finally:
        if bad > BAD_SHOWN:
            click.echo(f"{path}: {bad - BAD_SHOWN:,} more lines that cannot be read were left out", err=True)
    return None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
    elif path.suffix == ".gz":
        with gzip.open(path, "rb") as file:
            yield cast(BinaryIO, file)
    else:
        with path.open("rb") as file:
            yield file


def _tell_event(as_json: bool, event: Event) -> None:
    click.echo(msgspec.json.encode(rendered(event, "replay")) if as_json else _line(event))


def _line(event: Event) -> str:
    """A transition in a line: when, where, from and to, why, and what was measured."""
    shown = metrics(event.reading, event.marks)
    facts = {
        "pressure": number(event.pressure, 2),
        "pending": shown.pending_messages,
        "inflight": shown.inflight_messages,
        "p95_ms": shown.latency_p95_ms,
        "drain_s": shown.drain_seconds,
        "diagnosis": event.diagnosis and event.diagnosis.value,
        "lost": event.lost,
        "alert": event.alert and event.alert.name,
    }
    told = "  ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
    step = f"{event.was.word} -> {event.now.word}"
    return f"{moment(event.at)}  {event.subject}  {step}  {event.type}  [{', '.join(event.reasons)}]  {told}".rstrip()


def _tell_difference(as_json: bool, found: Difference) -> None:
    words = [status.word for status in found.statuses]
    if as_json:
        sides = [{"status": word, "reasons": reasons} for word, reasons in zip(words, found.reasons, strict=True)]
        told = {"timestamp": moment(found.at), "subject": found.subject, "config": sides[0], "compare": sides[1]}
        click.echo(msgspec.json.encode(told | {"differed_seconds": number(found.lasted, 3)}))
    elif found.lasted is not None:
        click.echo(f"{moment(found.at)}  {found.subject}  both {words[0]}, after {found.lasted:,.1f} s")
    else:
        sides_ = [f"{word} [{', '.join(reasons)}]" for word, reasons in zip(words, found.reasons, strict=True)]
        click.echo(f"{moment(found.at)}  {found.subject}  {sides_[0]} | {sides_[1]}")


def _summary(replays: Sequence[Replay], differences: Differences, took: float) -> Iterator[str]:
    first = replays[0]
    span = first.now.mono - first.first.mono if first.first else 0.0
    if first.first:
        differences.end(first.now.wall)
        yield ""
        yield f"{moment(first.first.wall)} to {moment(first.now.wall)}, {_lasting(span)}"
    aside = f", {first.set_aside:,} of them set aside" if first.set_aside else ""
    samples = sum(each.samples for each in replays)
    speed = f"{samples / took:,.0f} samples/s, {span / took:,.0f} times as fast as it happened"
    yield f"{first.samples:,} samples{aside}; judged in {took:.1f} s: {speed}"
    yield _counts("events", [each.told for each in replays], lambda n: f"{n:,.0f}")
    times = [each.time_in() for each in replays]
    subjects = sorted({s for time in times for s in time}, key=lambda s: _weight(s, times, differences))
    for subject in subjects[:SUBJECTS_SHOWN]:
        seconds = differences.seconds.get(subject, 0.0)
        differ = f"; differed for {_lasting(seconds)}" if seconds else ""
        yield _counts(subject, [time.get(subject, {}) for time in times], _lasting) + differ
    if len(subjects) > SUBJECTS_SHOWN:
        yield f"and {len(subjects) - SUBJECTS_SHOWN:,} more subjects"
    if any(each.forgotten for each in replays):
        yield _counts("subjects that went", [each.forgotten for each in replays], _lasting)


def _weight(subject: str, times: Sequence[TimeIn], differences: Differences) -> tuple[float | str, ...]:
    """What comes first: the longest difference, then the longest active, then the longest warned of."""
    longest = [max(time.get(subject, {}).get(word, 0.0) for time in times) for word in ("active", "warning")]
    return -differences.seconds.get(subject, 0.0), *(-seconds for seconds in longest), subject


def _counts(what: str, each: Sequence[Mapping[str, float]], shown: Callable[[float], str]) -> str:
    """`a.b: active 3.0 s, warning 1.0 s`; where two are compared, `active 3.0 s | 0.0 s`."""
    names = sorted({name for counts in each for name in counts})
    told = [f"{name} {' | '.join(shown(counts.get(name, 0)) for counts in each)}" for name in names]
    return f"{what}: {', '.join(told) or 'none'}"


def _lasting(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"
