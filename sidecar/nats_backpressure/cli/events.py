"""`events`: what was told, and what is being told."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from nats_backpressure.cli.command import jetstream, read, run_command
from nats_backpressure.cli.options import Target, asks, past, subject
from nats_backpressure.cli.output import because, cell, note, plain, print_json
from nats_backpressure.protocol.history import Events
from nats_backpressure.protocol.messages import Event, Status
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.protocol.values import EventType
from nats_backpressure.queries.event_cache import parse_event
from nats_backpressure.runtime.ports import CachedEvent, Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

DAY = 86_400.0
"""Seconds that are gone back where no `--since` is given."""
AGAIN_AFTER = 1.0
"""Seconds before a lost connection is tried anew, while following."""
SKEW = 60.0
"""Seconds by which the clock of whoever told an event may be behind ours."""
MOST_READ = 100_000
"""Events of all subjects read from the stream at most, the newest."""


@click.command()
@click.argument("watched", metavar="[SUBJECT]", required=False, type=subject)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is told from now on, until interrupted.")
@click.option("--since", type=past, metavar="MOMENT", help="RFC 3339, or how long ago (1h).  [default: 24h]")
@click.option("--type", "kind", type=click.Choice([kind.value for kind in EventType]), help="Only of this type.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="The newest so many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document, newest first; one event a line on --follow.")
@asks
def events(
    target: Target, watched: str | None, follow: bool, since: float | None, kind: str | None, limit: int, as_json: bool
) -> None:
    """Print the events of SUBJECT, or of all subjects, the newest last.

    With --follow and without --since: only what is told from now on.
    """
    query = _Query(target, watched, kind, limit)

    async def story(line: ServiceClient) -> None:
        if follow:
            await _follow(line, query, since, as_json)
            return
        found = await query.told(line, time.time() - DAY if since is None else since)
        if as_json:
            print_json({"events": found.events, "truncated": found.truncated})
            return
        for event in reversed(found.events):
            _print(bytes(event), False)
        if found.truncated:
            note(f"the newest {len(found.events)}: there are more (--limit, --since)")

    run_command(target, story)


class _Query:
    """Which events are asked for."""

    def __init__(self, target: Target, watched: str | None, kind: str | None, limit: int) -> None:
        self._target, self._watched, self._kind, self._limit = target, watched, kind, limit

    def wants(self, event: CachedEvent) -> bool:
        return self._kind in (None, event.type)

    async def told(self, line: ServiceClient, since: float) -> Events:
        """The newest first: of a subject as the service answers, of all as the stream holds them."""
        if self._watched is None:
            return await self._stored(line, since)
        moment = datetime.fromtimestamp(since, UTC).isoformat()
        about: dict[str, Any] = {"type": self._kind, "since": moment, "limit": self._limit}
        return read(await line.ask(f"get.events.{encode(self._watched)}", about), Events)

    async def _stored(self, line: ServiceClient, since: float) -> Events:
        from nats_backpressure.adapters.nats.event_reader import JetStreamEventReader

        found: deque[CachedEvent] = deque(maxlen=self._limit + 1)
        since_ms = round(1000 * since)

        def take(event: CachedEvent) -> None:
            if event.at >= since_ms and self.wants(event):
                found.append(event)

        log = JetStreamEventReader(jetstream(self._target, line), line.client, line.names, lambda what: None)
        complete_since = await log.recall(since_ms, MOST_READ, take)
        newest = sorted(found, key=lambda event: (event.at, event.seq), reverse=True)
        more = len(newest) > self._limit or complete_since > since_ms
        return Events((), tuple(msgspec.Raw(event.body) for event in newest[: self._limit]), more)

    async def subjects(self, line: ServiceClient) -> tuple[str, ...]:
        """Where they are published: a watched subject's own; of another literal, those of all that cover it."""
        if self._watched is None:
            return (f"{line.names.prefix}.event.{self._kind or '*'}.>",)
        try:
            found = read(await line.ask(f"get.status.{encode(self._watched)}"), Status)
            return found.event_subjects[:1] if self._watched in found.matched[:1] else found.event_subjects
        except Unavailable as error:
            note(f"{error}; following the subject as it is written")
            return (line.names.event("*", self._watched).replace("=2A", "*", 1),)


async def _follow(line: ServiceClient, query: _Query, since: float | None, as_json: bool) -> None:
    """What is told, each once; over a loss of the connection too, with what was told meanwhile."""
    passed: dict[str, tuple[str, int]] = {}

    def tell(payload: bytes) -> None:
        event = parse_event(payload)
        if event is None:
            return
        epoch, seq = passed.get(event.subject, ("", 0))
        if event.epoch != epoch or event.seq > seq:
            passed[event.subject] = event.epoch, event.seq
            if query.wants(event):
                _print(event.body, as_json)

    first, began = True, time.time() if since is None else since
    while True:
        try:
            async with line.hear(await query.subjects(line)) as heard:
                if since is not None:
                    for event in reversed((await query.told(line, since)).events):
                        tell(bytes(event))
                first = False
                while (message := await heard.get()) is not None:
                    since = max(began, time.time() - SKEW)
                    tell(message.data)
                since = began if since is None else since
            note("the connection was lost; trying again")
        except Unavailable:
            if first:
                raise
            await line.close()
        await asyncio.sleep(AGAIN_AFTER)


def _print(payload: bytes, as_json: bool) -> None:
    click.echo(payload if as_json else plain(_line(read(payload, Event))))


def _line(event: Event) -> str:
    """An event in a line: when, what, from and to, why, and what was measured."""
    facts = {
        "pressure": event.pressure,
        "pending": event.metrics.pending_messages,
        "inflight": event.metrics.inflight_messages,
        "p95_ms": event.metrics.latency_p95_ms,
        "drain_s": event.metrics.drain_seconds,
        "lost": event.lost or None,
        "alert": f"{event.alert.name} ({event.alert.severity})" if event.alert else None,
        "errors": "; ".join(f"{p.path}: {p.message}" for p in event.errors or ()) or None,
    }
    told = "  ".join(f"{name} {cell(value)}" for name, value in facts.items() if value is not None)
    step = f"{event.from_} -> {event.to}" if event.from_ != event.to else event.to
    why = because(event.reasons, event.diagnosis)
    return f"{event.timestamp}  {event.subject}  {event.type}  {step}  [{why}]  {told}".rstrip()
