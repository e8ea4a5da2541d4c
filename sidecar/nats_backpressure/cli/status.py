"""`status`: prints how close each subject is to overload, or everything about one subject."""

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

from nats_backpressure.cli.command import all_statuses, decode_reply, run_command
from nats_backpressure.cli.options import Target, connection_flags, parse_subject
from nats_backpressure.cli.output import (
    Row,
    format_cell,
    format_reasons,
    print_json,
    print_table,
    printable,
    rich_table,
)
from nats_backpressure.protocol.messages import ConsumerStatus, Status, StatusList
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.runtime.ports import Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

WATCH_INTERVAL = 1.0
"""Seconds between two requests of `--watch`."""
STATUS_ORDER = ("active", "warning", "unknown", "inactive")
"""Order in the list, most urgent first."""
LIST_HEADERS = ("subject", "status", "pressure", "pending", "inflight", "p95 ms", "drain s", "freshness", "why")
SIGNAL_HEADERS = ("signal", "value", "level", "warn", "critical", "overload", "mark from")
CONSUMER_HEADERS = ("stream", "consumer", "status", "pending", "inflight", "p95 ms", "freshness", "why")
SIGNAL_FIELDS = (
    ("pending", "pending_messages", "queue_{}"),
    ("inflight", "inflight_messages", "inflight_{}"),
    ("latency_p95", "latency_p95_ms", "latency_{}_ms"),
    ("drain", "drain_seconds", "drain_{}_seconds"),
)
"""For each signal: its name, the field of its value, and the fields of its marks."""


class Section(NamedTuple):
    headers: Row
    rows: list[Row]
    title: str = ""


@click.command(short_help="Show the status of all subjects or of one.")
@click.argument("watched", metavar="[SUBJECT]", required=False, type=parse_subject)
@click.option("--watch", is_flag=True, help="Repeat every second, until interrupted.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the reply as one JSON document (with --watch, one per second)."
)
@connection_flags
def status(target: Target, watched: str | None, watch: bool, as_json: bool) -> None:
    """Show the status of all watched subjects, the worst first, or everything about SUBJECT."""

    async def read_status(service: ServiceClient) -> bytes | list[Section]:
        if watched is None:
            subjects = await all_statuses(service)
            statuses = StatusList(len(subjects), 0, None, subjects)
            return msgspec.json.encode(statuses) if as_json else _list_sections(statuses)
        document = await service.query(f"get.status.{encode(watched)}")
        return document if as_json else _subject_sections(decode_reply(document, Status))

    async def print_status(service: ServiceClient) -> None:
        if watch and not as_json and sys.stdout.isatty():
            await _draw_live(lambda: read_status(service))
        else:
            await _print_sections(lambda: read_status(service), watch)

    run_command(target, print_status)


async def _print_sections(read_status: Callable[[], Awaitable[bytes | list[Section]]], watch: bool) -> None:
    while True:
        result = await read_status()
        if isinstance(result, bytes):
            print_json(result)
        else:
            for section in result:
                print_table(*section)
        if not watch:
            return
        await asyncio.sleep(WATCH_INTERVAL)


async def _draw_live(read_status: Callable[[], Awaitable[bytes | list[Section]]]) -> None:
    """Redraw in place on a terminal. After the first success, a failed request is shown below the last result and
    tried again."""
    shown = Group()
    with Live(shown, auto_refresh=False) as live:
        while True:
            try:
                result = await read_status()
                if not isinstance(result, bytes):
                    shown = Group(*(rich_table(*section) for section in result))
                live.update(shown, refresh=True)
            except Unavailable as error:
                if not shown.renderables:
                    raise
                live.update(Group(shown, Text(printable(str(error)), style="red")), refresh=True)
            await asyncio.sleep(WATCH_INTERVAL)


def _list_sections(statuses: StatusList) -> list[Section]:
    return [Section(LIST_HEADERS, [_list_row(each) for each in sorted(statuses.subjects, key=_sort_key)])]


def _sort_key(status: Status) -> tuple[int, float, str]:
    order = STATUS_ORDER.index(status.status) if status.status in STATUS_ORDER else 0
    return order, -(status.pressure or 0.0), status.subject


def _list_row(status: Status) -> Row:
    m, why = status.metrics, format_reasons(status.reasons, status.diagnosis)
    numbers = (status.pressure, m.pending_messages, m.inflight_messages, m.latency_p95_ms, m.drain_seconds)
    return status.subject, status.status, *map(format_cell, numbers), status.freshness, why


def _subject_sections(status: Status) -> list[Section]:
    age = "" if status.age_ms is UNSET or status.age_ms is None else f", {status.age_ms / 1000:,.1f} s old"
    override = status.override and f"{status.override.action} until {status.override.until}"
    facts = {
        "status": f"{status.status} since {status.since}" if status.since else status.status,
        "why": format_reasons(status.reasons, status.diagnosis) or "-",
        "pressure": format_cell(status.pressure),
        "admit ratio": format_cell(status.admit_ratio),
        "mode": status.mode,
        "override": override or "none",
        "incident": status.incident or "-",
        "freshness": f"{status.freshness}{age}" + (f" ({status.stale_reason})" if status.stale_reason else ""),
        "matched": ", ".join(status.matched),
    }
    consumers = [_consumer_row(each) for each in status.consumers]
    hidden = status.consumers_total - len(consumers)
    title = f"the worst of {status.consumers_total:,} consumers" if hidden > 0 else ""
    return [
        Section(("subject", status.subject), list(facts.items())),
        Section(SIGNAL_HEADERS, [_signal_row(status, *names) for names in SIGNAL_FIELDS]),
        Section(CONSUMER_HEADERS, consumers, title),
    ]


def _signal_row(status: Status, name: str, value: str, mark: str) -> Row:
    marks = [getattr(status.thresholds, mark.format(word), None) for word in ("warn", "critical", "overload")]
    level = getattr(status.levels, name)
    measured = format_cell(getattr(status.metrics, value))
    return name, measured, level, *map(format_cell, marks), status.thresholds_from.get(name, "")


def _consumer_row(consumer: ConsumerStatus) -> Row:
    m, why = consumer.metrics, format_reasons(consumer.latched, consumer.diagnosis)
    numbers = map(format_cell, (m.pending_messages, m.inflight_messages, m.latency_p95_ms))
    return consumer.stream, consumer.consumer, consumer.status, *numbers, consumer.freshness, why
