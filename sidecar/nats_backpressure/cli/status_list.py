"""The list of `status`: which subjects it has, in which order, their totals, and the columns that fit on the screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from msgspec import Struct

from nats_backpressure.cli.output import Row, format_cell, format_reasons
from nats_backpressure.protocol.messages import Status
from nats_backpressure.protocol.patterns import covers

STATUSES: Final = ("active", "warning", "unknown", "inactive")
"""Most urgent first."""
HEADERS: Final = ("subject", "status", "pressure", "pending", "inflight", "p95 ms", "drain s", "freshness", "why")
ALWAYS: Final = ("subject", "status")
BY_IMPORTANCE: Final = ("why", "pressure", "pending", "freshness", "inflight", "p95 ms", "drain s")
"""The other columns: a narrow screen has the first of them for which there is room."""
USUAL: Final = {"freshness": "known"}
"""What a column has where there is nothing to see, if it is not `-` or empty."""
FOLDED: Final = {"why": 24}
"""Columns that are folded rather than that others give way, and the characters that they need."""
SORTS: Final[dict[str, Callable[[Status], Any]]] = {
    "urgency": lambda each: (_urgency(each), -(each.pressure or 0.0)),
    "pressure": lambda each: -(each.pressure or 0.0),
    "pending": lambda each: -(each.metrics.pending_messages or 0),
    "inflight": lambda each: -(each.metrics.inflight_messages or 0),
    "latency": lambda each: -(each.metrics.latency_p95_ms or 0.0),
    "subject": lambda each: (),
}
"""By what the list may be sorted; equal ones by subject."""


class StatusFilter(Struct, frozen=True):
    """Which subjects are shown."""

    pattern: str | None = None
    statuses: Collection[str] = ()
    """None given: all."""
    sort: str = "urgency"
    limit: int | None = None

    def matching(self, statuses: Sequence[Status]) -> list[Status]:
        """Those that match, sorted; `limit` does not count here."""
        matching = [
            each
            for each in statuses
            if (self.pattern is None or covers(self.pattern, each.subject))
            and (not self.statuses or each.status in self.statuses)
        ]
        return sorted(matching, key=lambda each: (SORTS[self.sort](each), each.subject))


def list_row(status: Status) -> Row:
    m = status.metrics
    numbers = (status.pressure, m.pending_messages, m.inflight_messages, m.latency_p95_ms, m.drain_seconds)
    return status.subject, status.status, *map(format_cell, numbers), status.freshness, _why(status)


def _why(status: Status) -> str:
    """An override stands first, with its direction and its end: it decides, whatever is measured, in a dry run too."""
    reasons = [reason for reason in status.reasons if reason != "override"]
    if status.override is not None:
        reasons.insert(0, f"override: {status.override.action} until {status.override.until}")
    elif status.mode == "observe":
        reasons.insert(0, "dry run")
    return format_reasons(reasons, status.diagnosis) or without_consumer(status)


def without_consumer(status: Status) -> str:
    """Why an unknown subject has nothing to show; empty where it has a consumer."""
    return "no consumer is known" if status.status == "unknown" and not status.consumers_total else ""


def totals_line(all_statuses: Sequence[Status], matching: Sequence[Status], shown: int) -> str:
    """How many subjects there are of each status, and how many of them are shown."""
    if not all_statuses:
        return "no subject is watched"
    counts = Counter(each.status for each in all_statuses)
    parts = [f"{counts[status]:,} {status}" for status in STATUSES]
    subjects = "1 subject" if len(all_statuses) == 1 else f"{len(all_statuses):,} subjects"
    matched = "" if len(matching) == len(all_statuses) else f"; {len(matching):,} match"
    few = "" if shown == len(matching) else f"; {shown:,} shown"
    return f"{subjects}: {', '.join(parts)}{matched}{few}"


def fitting(headers: Row, rows: Sequence[Row], width: int, between: int = 2) -> tuple[Row, list[Row]]:
    """The columns that fit into so many characters, with `between` of them beside each: the important ones first, and
    none in which there is nothing to see."""
    sizes = {
        name: min(FOLDED.get(name, width), max(map(len, column), default=0))
        for name, *column in zip(headers, *rows, strict=True)
        if name in ALWAYS or any(cell not in ("-", "", USUAL.get(name)) for cell in column)
    }
    sizes = {name: max(len(name), size) + between for name, size in sizes.items()}
    room = width - sum(sizes[name] for name in ALWAYS)
    fitting_names = set(ALWAYS)
    for name in BY_IMPORTANCE:
        if sizes.get(name, width) <= room:
            fitting_names.add(name)
            room -= sizes[name]
    columns = [n for n, name in enumerate(headers) if name in fitting_names]
    return [headers[n] for n in columns], [[row[n] for n in columns] for row in rows]


def _urgency(status: Status) -> int:
    return STATUSES.index(status.status) if status.status in STATUSES else 0
