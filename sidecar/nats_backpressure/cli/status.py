"""`status`: how close each subject is to overload, or all about one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec
from msgspec import UNSET
from rich.console import Group
from rich.live import Live
from rich.text import Text

from nats_backpressure.cli.command import read, run_command, statuses
from nats_backpressure.cli.options import Target, asks, subject
from nats_backpressure.cli.output import Row, because, cell, grid, plain, print_json, table
from nats_backpressure.protocol.messages import ConsumerStatus, Status, StatusList
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.runtime.ports import Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

WATCH_EVERY = 1.0
"""Seconds between two looks of `--watch`."""
SEVERITY = ("active", "warning", "unknown", "inactive")
"""What comes first in the list."""
LIST = ("subject", "status", "pressure", "pending", "inflight", "p95 ms", "drain s", "freshness", "why")
SIGNAL = ("signal", "value", "level", "warn", "critical", "overload", "mark from")
CONSUMER = ("stream", "consumer", "status", "pending", "inflight", "p95 ms", "freshness", "why")
NAMES = (
    ("pending", "pending_messages", "queue_{}"),
    ("inflight", "inflight_messages", "inflight_{}"),
    ("latency_p95", "latency_p95_ms", "latency_{}_ms"),
    ("drain", "drain_seconds", "drain_{}_seconds"),
)
"""One signal, three names: its own, and those of its value and of its marks."""


class Part(NamedTuple):
    headers: Row
    rows: list[Row]
    title: str = ""


@click.command()
@click.argument("watched", metavar="[SUBJECT]", required=False, type=subject)
@click.option("--watch", is_flag=True, help="Look again each second, until interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as one JSON document (one each second).")
@asks
def status(target: Target, watched: str | None, watch: bool, as_json: bool) -> None:
    """Show the status of all watched subjects, the worst first, or all about SUBJECT."""

    async def look(line: ServiceClient) -> bytes | list[Part]:
        if watched is None:
            subjects = await statuses(line)
            found = StatusList(len(subjects), 0, None, subjects)
            return msgspec.json.encode(found) if as_json else _list(found)
        document = await line.ask(f"get.status.{encode(watched)}")
        return document if as_json else _one(read(document, Status))

    async def story(line: ServiceClient) -> None:
        if watch and not as_json and sys.stdout.isatty():
            await _draw(lambda: look(line))
        else:
            await _write(lambda: look(line), watch)

    run_command(target, story)


async def _write(look: Callable[[], Awaitable[bytes | list[Part]]], watch: bool) -> None:
    while True:
        found = await look()
        if isinstance(found, bytes):
            print_json(found)
        else:
            for part in found:
                grid(*part)
        if not watch:
            return
        await asyncio.sleep(WATCH_EVERY)


async def _draw(look: Callable[[], Awaitable[bytes | list[Part]]]) -> None:
    """On a terminal, in one place. Once something was seen, a look that fails is told beside it, and the next may be
    better."""
    shown = Group()
    with Live(shown, auto_refresh=False) as live:
        while True:
            try:
                found = await look()
                if not isinstance(found, bytes):
                    shown = Group(*(table(*part) for part in found))
                live.update(shown, refresh=True)
            except Unavailable as error:
                if not shown.renderables:
                    raise
                live.update(Group(shown, Text(plain(str(error)), style="red")), refresh=True)
            await asyncio.sleep(WATCH_EVERY)


def _list(found: StatusList) -> list[Part]:
    return [Part(LIST, [_row(each) for each in sorted(found.subjects, key=_urgency)])]


def _urgency(found: Status) -> tuple[int, float, str]:
    known = found.status in SEVERITY
    return SEVERITY.index(found.status) if known else 0, -(found.pressure or 0.0), found.subject


def _row(found: Status) -> Row:
    m, why = found.metrics, because(found.reasons, found.diagnosis)
    numbers = (found.pressure, m.pending_messages, m.inflight_messages, m.latency_p95_ms, m.drain_seconds)
    return found.subject, found.status, *map(cell, numbers), found.freshness, why


def _one(found: Status) -> list[Part]:
    age = "" if found.age_ms is UNSET or found.age_ms is None else f", {found.age_ms / 1000:,.1f} s old"
    override = found.override and f"{found.override.action} until {found.override.until}"
    facts = {
        "status": f"{found.status} since {found.since}" if found.since else found.status,
        "why": because(found.reasons, found.diagnosis) or "-",
        "pressure": cell(found.pressure),
        "admit ratio": cell(found.admit_ratio),
        "mode": found.mode,
        "override": override or "none",
        "incident": found.incident or "-",
        "freshness": f"{found.freshness}{age}" + (f" ({found.stale_reason})" if found.stale_reason else ""),
        "matched": ", ".join(found.matched),
    }
    consumers = [_consumer(each) for each in found.consumers]
    hidden = found.consumers_total - len(consumers)
    title = f"the worst of {found.consumers_total:,} consumers" if hidden > 0 else ""
    return [
        Part(("subject", found.subject), list(facts.items())),
        Part(SIGNAL, [_signal(found, *names) for names in NAMES]),
        Part(CONSUMER, consumers, title),
    ]


def _signal(found: Status, name: str, value: str, mark: str) -> Row:
    marks = [getattr(found.thresholds, mark.format(word), None) for word in ("warn", "critical", "overload")]
    level = getattr(found.levels, name)
    return name, cell(getattr(found.metrics, value)), level, *map(cell, marks), found.thresholds_from.get(name, "")


def _consumer(found: ConsumerStatus) -> Row:
    m, why = found.metrics, because(found.latched, found.diagnosis)
    numbers = map(cell, (m.pending_messages, m.inflight_messages, m.latency_p95_ms))
    return found.stream, found.consumer, found.status, *numbers, found.freshness, why
