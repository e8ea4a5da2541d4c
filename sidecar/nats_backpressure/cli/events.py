"""`events`: prints published events, and follows new ones."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from nats_backpressure.cli.command import NOT_WATCHED, decode_reply, jetstream_api, run_command
from nats_backpressure.cli.options import Target, connection_flags, json_option, parse_since, parse_subject
from nats_backpressure.cli.output import format_cell, format_reasons, print_json, print_note, printable
from nats_backpressure.policy.validation import FieldProblem
from nats_backpressure.protocol.history import Events
from nats_backpressure.protocol.messages import Event, Status
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.protocol.values import EventType
from nats_backpressure.queries.event_cache import parse_event
from nats_backpressure.runtime.ports import Unavailable
from nats_backpressure.runtime.stored_events import CachedEvent

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

DEFAULT_SPAN = 86_400.0
"""Seconds before now from which events are printed if no `--since` is given."""
RECONNECT_AFTER = 1.0
"""Seconds before the next attempt to connect, while following."""
CLOCK_SKEW = 60.0
"""Seconds by which a publisher's clock may be behind ours."""
READ_LIMIT = 100_000
"""Most events read from the stream; the newest ones."""


@click.command(short_help="Print events, or follow new ones.")
@click.argument("watched", metavar="[SUBJECT]", required=False, type=parse_subject)
@click.option("--follow", "-f", is_flag=True, help="Then print new events when they are published, until interrupted.")
@click.option(
    "--since",
    type=parse_since,
    metavar="TIME",
    help="An RFC 3339 time, or a duration before now (1h).  [default: 24h; with --follow: now]",
)
@click.option(
    "--type",
    "kind",
    type=click.Choice([kind.value for kind in EventType]),
    metavar="TYPE",
    help=f"Only events of this type: {', '.join(kind.value for kind in EventType)}.",
)
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Print only the newest N events."
)
@json_option("Print one JSON document; with --follow one event per line.")
@connection_flags
def events(
    target: Target, watched: str | None, follow: bool, since: float | None, kind: str | None, limit: int, as_json: bool
) -> None:
    """Print the events of SUBJECT, or of all subjects: oldest first, but newest first in the document of --json.

    Those of a subject that is gone, or without a running sidecar, are read from the stream of events, with a note.

    With --follow but without --since, only new events are printed.
    """
    query = _EventQuery(target, watched, kind, limit)

    async def print_events(service: ServiceClient) -> None:
        if watched is None:
            await _require_stream(target, service, follow=follow)
        elif follow:
            await _note_missing(target, service)
        if follow:
            await _follow(service, query, since, as_json)
            return
        stored = await query.stored(service, time.time() - DEFAULT_SPAN if since is None else since)
        if watched is not None and not stored.events:
            await _note_missing(target, service)
        if as_json:
            print_json({"events": stored.events, "truncated": stored.truncated})
            return
        for event in reversed(stored.events):
            _print_event(bytes(event), False)
        if stored.truncated:
            print_note(f"these are the newest {len(stored.events)} events; there are more (--limit, --since)")

    run_command(target, print_events)


async def _require_stream(target: Target, service: ServiceClient, *, follow: bool) -> None:
    """Raises Unavailable if there is no events stream of this name. Who follows may have no right to ask for it."""
    stream = service.names.events_stream
    try:
        info = await jetstream_api(target, service).stream(stream)
    except Unavailable:
        if follow:
            return
        raise
    if info is None:
        name = service.names.name
        raise Unavailable(f"there is no stream {stream}: a sidecar of the name `{name}` creates it (is --name right?)")


async def _note_missing(target: Target, service: ServiceClient) -> None:
    """Say that there is no events stream, where that can be asked: a sidecar that runs knows no event without one."""
    try:
        await _require_stream(target, service, follow=True)
    except Unavailable as error:
        print_note(f"{error}; `nats-backpressure doctor` says what is in the way")


class _EventQuery:
    """Which events the command prints, and how it reads them."""

    def __init__(self, target: Target, watched: str | None, kind: str | None, limit: int) -> None:
        self._target, self._watched, self._kind, self._limit = target, watched, kind, limit

    def matches(self, event: CachedEvent) -> bool:
        return self._kind in (None, event.type)

    def _is_about(self, event: CachedEvent) -> bool:
        """Whether an event of the stream is about the subject that was asked for, or one that covers it or is in it."""
        asked = self._watched
        return (
            asked in (None, event.subject) or covers(asked or "", event.subject) or covers(event.subject, asked or "")
        )

    async def stored(self, service: ServiceClient, since: float) -> Events:
        """The newest first: of one subject from the service where that knows it, else from the events stream."""
        if self._watched is None:
            return await self._read_stream(service, since)
        try:
            return await self._ask(service, since)
        except Unavailable as error:
            return await self._read_instead(service, since, error)

    async def _ask(self, service: ServiceClient, since: float) -> Events:
        """The events of one subject, as a sidecar knows them."""
        assert self._watched is not None
        moment = datetime.fromtimestamp(since, UTC).isoformat()
        body: dict[str, Any] = {"type": self._kind, "since": moment, "limit": self._limit}
        return decode_reply(await service.query(f"get.events.{encode(self._watched)}", body), Events)

    async def _read_instead(self, service: ServiceClient, since: float, why: Unavailable) -> Events:
        """The events of one subject from the stream, where no sidecar has an answer: none runs, or the subject is not
        watched any more. Raises `why` where the stream has none either."""
        try:
            await _require_stream(self._target, service, follow=False)
            found = await self._read_stream(service, since)
        except Unavailable:
            raise why from None
        if not found.events and getattr(why, "code", "") == NOT_WATCHED:  # a typo, most often
            raise why
        print_note(f"{why}; what follows is read from the stream of events")
        return found

    async def _read_stream(self, service: ServiceClient, since: float) -> Events:
        from nats_backpressure.adapters.nats.event_reader import JetStreamEventReader
        from nats_backpressure.runtime.clock import SystemClock

        matching: deque[CachedEvent] = deque(maxlen=self._limit + 1)
        since_ms = round(1000 * since)

        def add(event: CachedEvent) -> None:
            if event.at >= since_ms and self.matches(event) and self._is_about(event):
                matching.append(event)

        api = jetstream_api(self._target, service)
        reader = JetStreamEventReader(api, service.client, service.names, parse_event, lambda what: None, SystemClock())
        complete_since = await reader.recall(since_ms, READ_LIMIT, add)
        newest = sorted(matching, key=lambda event: (event.at, event.seq), reverse=True)
        more = len(newest) > self._limit or complete_since > since_ms
        return Events((), tuple(msgspec.Raw(event.body) for event in newest[: self._limit]), more)

    async def event_subjects(self, service: ServiceClient) -> tuple[str, ...]:
        """Where the events are published: a watched subject has its own; any other, those of the subjects that cover
        it."""
        if self._watched is None:
            return (f"{service.names.prefix}.event.{self._kind or '*'}.>",)
        try:
            status = decode_reply(await service.query(f"get.status.{encode(self._watched)}"), Status)
            return status.event_subjects[:1] if self._watched in status.matched[:1] else status.event_subjects
        except Unavailable as error:
            print_note(f"{error}; following the events of exactly this subject")
            return (service.names.event("*", self._watched).replace("=2A", "*", 1),)


async def _follow(service: ServiceClient, query: _EventQuery, since: float | None, as_json: bool) -> None:
    """Print each event once; after a lost connection also those that were published in between."""
    last_printed: dict[str, tuple[str, int]] = {}

    def print_once(payload: bytes) -> None:
        event = parse_event(payload)
        if event is None:
            return
        epoch, seq = last_printed.get(event.subject, ("", 0))
        if event.epoch != epoch or event.seq > seq:
            last_printed[event.subject] = event.epoch, event.seq
            if query.matches(event):
                _print_event(event.body, as_json)

    first, start = True, time.time() if since is None else since
    while True:
        try:
            async with service.subscribe(await query.event_subjects(service)) as messages:
                if since is not None:
                    for event in reversed((await query.stored(service, since)).events):
                        print_once(bytes(event))
                first = False
                while (message := await messages.get()) is not None:
                    since = max(start, time.time() - CLOCK_SKEW)
                    if message.subject.startswith(f"{service.names.prefix}.event."):  # else it comes from a stream
                        print_once(message.data)
                since = start if since is None else since
            print_note("the connection was lost; trying again")
        except Unavailable:
            if first:
                raise
            await service.close()
        await asyncio.sleep(RECONNECT_AFTER)


def _print_event(payload: bytes, as_json: bool) -> None:
    click.echo(payload if as_json else printable(_format_event(decode_reply(payload, Event))))


def _format_event(event: Event) -> str:
    """One line: time, subject, type, from and to, reasons, and what was measured."""
    facts = {
        "pressure": event.pressure,
        "pending": event.metrics.pending_messages,
        "inflight": event.metrics.inflight_messages,
        "p95_ms": event.metrics.latency_p95_ms,
        "drain_s": event.metrics.drain_seconds,
        "lost": event.lost or None,
        "alert": f"{event.alert.name} ({event.alert.severity})" if event.alert else None,
        "errors": "; ".join(FieldProblem(p.path, p.message).line for p in event.errors or ()) or None,
    }
    measured = "  ".join(f"{name} {format_cell(value)}" for name, value in facts.items() if value is not None)
    change = f"{event.from_} -> {event.to}" if event.from_ != event.to else event.to
    why = format_reasons(event.reasons, event.diagnosis)
    return f"{event.timestamp}  {event.subject}  {event.type}  {change}  [{why}]  {measured}".rstrip()
