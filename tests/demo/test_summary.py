"""What a run comes to, and how it is shown: from rows and counts that are written here."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections import Counter
from typing import Any

import pytest
from rich.console import Console

from benchmarks.plot import svg_chart
from nats_backpressure.demo.html_report import html_page
from nats_backpressure.demo.scenario import Scenario
from nats_backpressure.demo.summary import Row, RunData, summarize
from nats_backpressure.demo.terminal_output import TerminalOutput

SCENARIO = Scenario(workers=10, seconds_per_message=0.1, seconds=10.0, calm=2.0, deadline=5.0)  # 100 a second
ACTIVE: dict[str, Any] = {
    "type": "backpressure_active",
    "seq": 1,
    "from": "inactive",
    "to": "active",
    "reasons": ["pending", "drain"],
    "retry_after_seconds": 30,
}
FIRING = ACTIVE | {"type": "alert_firing", "seq": 2, "from": "active", "alert": {"name": "long-queue"}}
RECOVERY = ACTIVE | {"type": "recovery", "seq": 3, "from": "active", "to": "inactive", "reasons": []}


def row(at: float, status: str = "inactive", backlog: int = 0, p95_ms: float | None = None) -> Row:
    return Row(at, 1000, 100, 900, 95, backlog, 20, p95_ms, status, 0.1)


def run_data(**fields: Any) -> RunData:
    return RunData(**{"scenario": SCENARIO, "rows": [row(0.25), row(0.5, "active", 300, 450.0)], **fields})


def test_goodput_is_what_was_done_in_time_while_the_overload_lasted() -> None:
    in_time = [(2.0 + n / 100, 1.0) for n in range(500)]
    late, before, after = [(3.0, 5.1)] * 100, [(1.9, 1.0)] * 50, [(12.0, 1.0)] * 50
    assert summarize(run_data(latencies=[*in_time, *late, *before, *after])).goodput == 0.5


def test_quantiles_are_of_all_that_was_done_and_unknown_where_nothing_was() -> None:
    found = summarize(run_data(latencies=[(3.0, n / 100) for n in range(1, 101)]))
    assert (found.p50_seconds, found.p99_seconds) == (0.5, 0.99)
    assert (summarize(run_data()).p50_seconds, summarize(run_data()).goodput) == (None, 0.0)


def test_counts_are_those_of_the_programs() -> None:
    found = summarize(
        run_data(
            callers=Counter(offered=1000, admitted=90, shed=900, failed=7, missed=3),
            worker=Counter(done=90, redelivered=4, naked=2),
            events=[ACTIVE, FIRING, RECOVERY],
            lost=1,
        )
    )
    assert (found.shed, found.failed, found.done, found.redelivered, found.naked, found.lost) == (0.9, 10, 90, 4, 2, 1)
    assert (found.status_changes, found.status_changes_per_minute) == (2, round(60 * 2 / 14, 1))
    assert (found.events, found.largest_backlog) == ({"alert_firing": 1, "backpressure_active": 1, "recovery": 1}, 300)


@pytest.mark.parametrize("rows", [[], [row(0.25)], [row(0.25), row(0.5, "active", 300, 450.0)]])
def test_the_page_is_whole_however_little_there_is_to_show(rows: list[Row]) -> None:
    found = run_data(rows=rows, callers=Counter(offered=1))
    text = html_page(found, summarize(found))
    assert text.startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert "nan" not in text and "http" not in text.replace("http://www.w3.org", "")
    for chart in text.split("<svg")[1:]:
        ET.fromstring("<svg" + chart.split("</svg>")[0] + "</svg>")


def test_the_plot_of_a_benchmark_names_every_system_and_what_it_lost() -> None:
    lossy, clean = summarize(run_data(lost=1234)), summarize(run_data(latencies=[(3.0, 1.0)] * 100))
    text = svg_chart({1.0: {"us": clean, "<them>": lossy}, 10.0: {"us": clean, "<them>": lossy}})
    ET.fromstring(text)
    assert text.count("&lt;them&gt;") == 2 and text.count("1,234 lost") == 2 and "10x" in text


def test_the_story_tells_a_row_a_second_and_every_event() -> None:
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
