"""Prints a demo run on the terminal while it happens, and its summary at the end."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from nats_backpressure.demo.summary import Row, Summary

PRINT_EVERY_ROWS = 4
"""One row in this many is printed: one per second."""
COLOURS = {"inactive": "green", "warning": "yellow", "active": "red", "unknown": "dim"}


class TerminalOutput:
    """Prints rows and events as they come."""

    def __init__(self, console: Console) -> None:
        self._console, self._rows = console, 0

    def print_heading(self, at: float, text: str) -> None:
        self._console.print(f"[dim]{at:5.1f} s[/]  [b]{text}[/]", highlight=False, soft_wrap=True)

    def print_row(self, row: Row) -> None:
        self._rows += 1
        if self._rows % PRINT_EVERY_ROWS:
            return
        p95 = "    -" if row.p95_ms is None else f"{row.p95_ms / 1000:4.1f}s"
        self._console.print(
            f"[dim]{row.at:5.1f} s[/]  [{COLOURS[row.status]}]{row.status:<8}[/]  offered {row.offered:>5.0f}/s"
            f"  admitted {row.admitted:>5.0f}/s  503 {row.shed:>5.0f}/s  done {row.processed:>4.0f}/s"
            f"  pending {row.backlog:>5}  in flight {row.inflight:>4}  p95 {p95}  admit {row.admit_ratio:.2f}",
            highlight=False,
            soft_wrap=True,
        )

    def print_event(self, at: float, event: dict[str, Any]) -> None:
        self._console.print(
            f"[dim]{at:5.1f} s[/]  [b reverse {COLOURS.get(event['to'], 'dim')}] {event['type']} [/]"
            f" seq {event['seq']}: {_format_change(event)}",
            highlight=False,
            soft_wrap=True,
        )

    def print_summary(self, summary: Summary) -> None:
        events = ", ".join(f"{kind} x {n}" for kind, n in summary.events.items()) or "none"
        p50, p99 = _format_seconds(summary.p50_seconds), _format_seconds(summary.p99_seconds)
        for name, value in (
            ("goodput", f"{summary.goodput:.0%} of the router's capacity, done within the deadline"),
            ("latency", f"p50 {p50}, p99 {p99} from request to ack"),
            ("rejected", f"{summary.shed:.0%} of the requests, with 503 at once"),
            ("messages", f"{summary.done} done, {summary.redelivered} redelivered, {summary.lost} lost"),
            ("backlog", f"{summary.largest_backlog} messages at most"),
            ("events", events),
        ):
            self._console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)


class NoOutput:
    """Prints nothing."""

    def print_heading(self, at: float, text: str) -> None: ...

    def print_row(self, row: Row) -> None: ...

    def print_event(self, at: float, event: dict[str, Any]) -> None: ...


def _format_change(event: dict[str, Any]) -> str:
    if alert := event.get("alert"):
        return str(alert["name"])
    because = f" because of {', '.join(event['reasons'])}" if event["reasons"] else ""
    retry = f", Retry-After {event['retry_after_seconds']}" if event["retry_after_seconds"] else ""
    return f"{event['from']} -> {event['to']}{because}{retry}"


def _format_seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"
