"""The terminal shows one row a second, every event, and the summary."""

from __future__ import annotations

import io

from rich.console import Console

from nats_backpressure.demo.summary import summarize
from nats_backpressure.demo.terminal_output import TerminalOutput
from tests.demo.run_data import ACTIVE, FIRING, row, run_data


def test_one_row_a_second_and_every_event_are_printed() -> None:
    out = io.StringIO()
    story = TerminalOutput(Console(file=out, width=200))
    for n in range(8):
        story.print_row(row(n / 4))
    for event in (ACTIVE, FIRING):
        story.print_event(1.0, event)
    story.print_summary(summarize(run_data(events=[ACTIVE])))
    lines = out.getvalue().splitlines()
    assert sum("offered" in line for line in lines) == 2
    assert any("inactive -> active because of pending, drain, Retry-After 30" in line for line in lines)
    assert any("alert_firing" in line and "long-queue" in line for line in lines)
    assert lines[-1].split() == ["events", "backpressure_active", "x", "1"]
