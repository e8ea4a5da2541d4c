"""The story of one run, as it happens on a terminal, and what it came to."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from nats_backpressure.demo.summary import Row, Summary

ROWS_TOLD = 4
"""One row in so many is told: a second's."""
COLOURS = {"inactive": "green", "warning": "yellow", "active": "red", "unknown": "dim"}


class TerminalOutput:
    """Tells rows and events as they come."""

    def __init__(self, console: Console) -> None:
        self._console, self._rows = console, 0

    def say(self, at: float, text: str) -> None:
        self._console.print(f"[dim]{at:5.1f} s[/]  [b]{text}[/]", highlight=False, soft_wrap=True)

    def row(self, row: Row) -> None:
        self._rows += 1
        if self._rows % ROWS_TOLD:
            return
        p95 = "    -" if row.p95_ms is None else f"{row.p95_ms / 1000:4.1f}s"
        self._console.print(
            f"[dim]{row.at:5.1f} s[/]  [{COLOURS[row.status]}]{row.status:<8}[/]  offered {row.offered:>5.0f}/s"
            f"  admitted {row.admitted:>5.0f}/s  503 {row.shed:>5.0f}/s  done {row.processed:>4.0f}/s"
            f"  pending {row.backlog:>5}  in flight {row.inflight:>4}  p95 {p95}  admit {row.admit_ratio:.2f}",
            highlight=False,
            soft_wrap=True,
        )

    def event(self, at: float, event: dict[str, Any]) -> None:
        self._console.print(
            f"[dim]{at:5.1f} s[/]  [b reverse {COLOURS.get(event['to'], 'dim')}] {event['type']} [/]"
            f" seq {event['seq']}: {_news(event)}",
            highlight=False,
            soft_wrap=True,
        )

    def sum_up(self, summary: Summary) -> None:
        told = ", ".join(f"{kind} x {n}" for kind, n in summary.events.items()) or "none"
        for name, value in (
            ("goodput", f"{summary.goodput:.0%} of what the router can do, done within the deadline"),
            ("latency", f"p50 {_seconds(summary.p50_seconds)}, p99 {_seconds(summary.p99_seconds)} from call to ack"),
            ("shed", f"{summary.shed:.0%} of the requests were answered 503 at once"),
            ("messages", f"{summary.done} done, {summary.redelivered} delivered again, {summary.lost} lost"),
            ("backlog", f"{summary.largest_backlog} at most"),
            ("events", told),
        ):
            self._console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)


class NoOutput:
    """An audience that only listens."""

    def say(self, at: float, text: str) -> None: ...

    def row(self, row: Row) -> None: ...

    def event(self, at: float, event: dict[str, Any]) -> None: ...


def _news(event: dict[str, Any]) -> str:
    if alert := event.get("alert"):
        return str(alert["name"])
    because = f" because of {', '.join(event['reasons'])}" if event["reasons"] else ""
    retry = f", Retry-After {event['retry_after_seconds']}" if event["retry_after_seconds"] else ""
    return f"{event['from']} -> {event['to']}{because}{retry}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
