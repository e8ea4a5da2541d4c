"""`status`: prints how close each subject is to overload, or everything about one subject."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec
from msgspec import UNSET
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from nats_backpressure.cli.command import all_statuses, decode_reply, run_command
from nats_backpressure.cli.options import Target, connection_flags, json_option, parse_subject
from nats_backpressure.cli.output import (
    Row,
    format_cell,
    format_reasons,
    print_json,
    print_note,
    print_table,
    printable,
    rich_table,
)
from nats_backpressure.cli.status_list import (
    HEADERS,
    SORTS,
    STATUSES,
    StatusFilter,
    fitting,
    list_row,
    totals_line,
    without_consumer,
)
from nats_backpressure.protocol.messages import ConsumerStatus, Status, StatusList
from nats_backpressure.protocol.subjects import encode, is_literal
from nats_backpressure.runtime.ports import Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

WATCH_INTERVAL = 1.0
"""Seconds between two requests of `--watch`."""
SIGNAL_HEADERS = ("signal", "value", "level", "warn", "critical", "overload", "mark from")
CONSUMER_HEADERS = ("stream", "consumer", "status", "pending", "inflight", "p95 ms", "freshness", "why")
SIGNAL_FIELDS = (
    ("pending", "pending_messages", "queue_{}"),
    ("inflight", "inflight_messages", "inflight_{}"),
    ("latency_p95", "latency_p95_ms", "latency_{}_ms"),
    ("drain", "drain_seconds", "drain_{}_seconds"),
)
"""For each signal: its name, the field of its value, and the fields of its marks."""


BORDER = 3
"""Characters that a drawn table needs beside each column, and one more in all."""
AROUND = 6
"""Lines around the rows of a drawn table: its headers, its lines, the totals, and an error."""


class Section(NamedTuple):
    headers: Row
    rows: list[Row]
    title: str = ""
    footer: str = ""
    """Below a list: its totals."""


Content = bytes | list[Section]
"""What is printed: a JSON document, or tables."""


@click.command(short_help="Show the status of all subjects or of one.")
@click.argument("watched", metavar="[SUBJECT]", required=False, type=parse_subject)
@click.option("--watch", is_flag=True, help="Repeat every second, until interrupted; also while NATS is away.")
@click.option("--status", "statuses", multiple=True, type=click.Choice(STATUSES), help="Only subjects in this status.")
@click.option(
    "--sort", type=click.Choice(tuple(SORTS)), default="urgency", show_default=True, help="The largest value first."
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Show the first N only.")
@json_option("Print the reply as one JSON document (with --watch, one per second).")
@connection_flags
def status(
    target: Target,
    watched: str | None,
    watch: bool,
    statuses: tuple[str, ...],
    sort: str,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show the status of all watched subjects, the worst first, or of those that a pattern such as `orders.*` covers;
    or everything about one SUBJECT."""
    listed = watched is None or not is_literal(watched)
    if not listed and (statuses or limit is not None):
        raise click.UsageError("--status and --limit are for a list: give a pattern, or no subject")
    chosen = StatusFilter(watched if listed else None, statuses, sort, limit)

    async def read_status(service: ServiceClient) -> Content:
        if listed:
            subjects = await all_statuses(service)
            if [each.subject for each in chosen.matching(subjects)] != [watched]:
                return _listed(subjects, chosen, as_json)
        # The only one: a pattern that is watched itself.
        document = await service.query(f"get.status.{encode(str(watched))}")
        return document if as_json else _subject_sections(decode_reply(document, Status))

    async def print_status(service: ServiceClient) -> None:
        if watch and not as_json and sys.stdout.isatty():
            await _draw_live(lambda: read_status(service))
        else:
            await _print_sections(lambda: read_status(service), watch)

    run_command(target, print_status)


def _listed(statuses: tuple[Status, ...], chosen: StatusFilter, as_json: bool) -> Content:
    matching = chosen.matching(statuses)
    shown = matching[: chosen.limit]
    if as_json:
        return msgspec.json.encode(StatusList(len(matching), 0, None, tuple(shown)))
    footer = totals_line(statuses, matching, len(shown))
    return [Section(HEADERS, [list_row(each) for each in shown], footer=footer)]


async def _print_sections(read_status: Callable[[], Awaitable[Content]], watch: bool) -> None:
    """After the first success of `--watch`, a failed request is reported once and tried again."""
    began, failed = False, False
    while True:
        try:
            result = await read_status()
        except Unavailable as error:
            if not (watch and began):
                raise
            if not failed:
                print_note(f"{error}; trying again")
            failed = True
        else:
            began, failed = True, False
            _print_content(result)
        if not watch:
            return
        await asyncio.sleep(WATCH_INTERVAL)


def _print_content(content: Content) -> None:
    if isinstance(content, bytes):
        print_json(content)
        return
    for section in content:
        headers, rows = section.headers, section.rows
        if section.footer and sys.stdout.isatty():
            headers, rows = fitting(headers, rows, Console().width - 1, BORDER)
        if rows:
            print_table(headers, rows, section.title)
        if section.footer:
            click.echo(section.footer)


async def _draw_live(read_status: Callable[[], Awaitable[Content]]) -> None:
    """Redraw in place on a terminal, as many rows as fit. After the first success, a failed request is shown below the
    last result and tried again."""
    shown = Group()
    with Live(shown, auto_refresh=False) as live:
        while True:
            try:
                result = await read_status()
                if not isinstance(result, bytes):
                    shown = Group(*(part for section in result for part in _drawn(section, live.console)))
                live.update(shown, refresh=True)
            except Unavailable as error:
                if not shown.renderables:
                    raise
                live.update(Group(shown, Text(printable(str(error)), style="red")), refresh=True)
            await asyncio.sleep(WATCH_INTERVAL)


def _drawn(section: Section, console: Console) -> list[RenderableType]:
    if not section.footer:
        return [rich_table(*section[:3])]
    room = max(1, console.height - AROUND)
    headers, rows = fitting(section.headers, section.rows[:room], console.width - 1, BORDER)
    hidden = len(section.rows) - len(rows)
    more = f"; {hidden:,} more below" if hidden else ""
    return [rich_table(headers, rows), Text(section.footer + more)]


def _subject_sections(status: Status) -> list[Section]:
    age = "" if status.age_ms is UNSET or status.age_ms is None else f", {status.age_ms / 1000:,.1f} s old"
    override = status.override and f"{status.override.action} until {status.override.until}"
    facts = {
        "status": f"{status.status} since {status.since}" if status.since else status.status,
        "why": format_reasons(status.reasons, status.diagnosis) or without_consumer(status) or "-",
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
