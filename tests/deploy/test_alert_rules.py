"""Rules, dashboard and KEDA example name metrics that exist, and each alert has its runbook and its tests."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from nats_backpressure.adapters.prometheus import definitions
from nats_backpressure.adapters.prometheus.definitions import P
from tests.deploy.monitoring_files import (
    ALERTS,
    ALL_RULES,
    CASES,
    DASHBOARD,
    DEPLOY,
    keda_queries,
    metrics_in,
    panel_queries,
)

RECORDS = {rule["record"]: rule["expr"] for rule in ALL_RULES if "record" in rule}
EXPRESSIONS = (
    panel_queries() | keda_queries() | {rule.get("alert") or rule["record"]: rule["expr"] for rule in ALL_RULES}
)
METRICS: dict[str, set[str]] = {
    **{name: set(labels) for name, (_, labels) in definitions.GAUGES.items()},
    **{f"{P}{name}_total": set(labels) for name, (_, labels) in definitions.COUNTERS.items()},
    **{f"{P}{name}_bucket": {"le"} for name in definitions.HISTOGRAMS},
    definitions.TIME_IN_STATUS[0] + "_total": set(definitions.TIME_IN_STATUS[2]),
    **{name: set(labels) for name, (_, _, labels) in definitions.PROCESS.items()},
}
TARGET = {"job", "instance"}
"""Labels that Prometheus adds."""


@pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS.keys())
def test_every_metric_and_label_of_an_expression_exists(expression: str) -> None:
    assert metrics_in(expression) <= set(METRICS)
    for record in re.findall(r"\w+:\w+:\w+", expression):
        assert record in RECORDS
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        if name in METRICS:
            assert used <= METRICS[name] | TARGET, name


def test_every_recording_rule_is_used() -> None:
    assert {record for record in RECORDS if any(record in each for each in EXPRESSIONS.values())} == set(RECORDS)


def test_the_panel_of_what_is_refused_goes_by_what_its_alert_does() -> None:
    """Decisions are only those of gateways that ask: the others follow the state."""
    admitted = {"router_backpressure_admit_ratio"}
    assert metrics_in(EXPRESSIONS["NatsBackpressureRejectingMost"]) == metrics_in(EXPRESSIONS["Refused A"]) == admitted


def test_the_dashboard_shows_every_metric_but_the_routers_own_and_some_of_the_process() -> None:
    """A new metric belongs on a panel, in a rule, or in this list."""
    elsewhere = {
        "router_backpressure_would_total", "router_backpressure_transitions_total", "router_backpressure_stream_fill",
        "router_backpressure_observe_duration_seconds_bucket", "router_backpressure_readings_heard_total",
        "router_backpressure_reload_timestamp_seconds", "router_backpressure_reloads_total",
    }  # fmt: skip
    used = set[str]().union(*map(metrics_in, EXPRESSIONS.values()))
    ours = {name for name in METRICS if name.startswith(P)}
    assert ours - used == elsewhere


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_its_cost_and_what_to_do(rule: dict[str, Any]) -> None:
    texts = rule["annotations"]
    assert set(texts) == {"summary", "cost", "action", "runbook_url"}
    assert all(len(text) > 15 for text in texts.values())
    assert all(texts[name].endswith((".", "?")) for name in ("summary", "cost", "action"))
    assert rule["labels"]["severity"] in ("warning", "critical")
    page, _, anchor = texts["runbook_url"].partition("#")
    headings = re.findall(r"^### (.+)$", (DEPLOY.parent / page).read_text(), re.MULTILINE)
    assert anchor in {heading.lower() for heading in headings}


def test_each_alert_has_a_case_in_which_it_fires_and_one_like_it_in_which_it_does_not() -> None:
    """promtool runs them (test_prometheus.py): a case lists all alerts that fire at some moments."""
    fires, quiet = set[str](), set[str]()
    for case in yaml.safe_load(CASES.read_text())["tests"]:
        metrics = set[str]().union(*(metrics_in(each["series"]) for each in case["input_series"]))
        firing = {
            label
            for moment in case["promql_expr_test"]
            for sample in moment["exp_samples"]
            for label in re.findall(r'alertname="(\w+)"', sample["labels"])
        }
        fires |= firing
        quiet |= {
            rule["alert"] for rule in ALERTS if rule["alert"] not in firing and metrics_in(_full(rule)) <= metrics
        }
    names = {rule["alert"] for rule in ALERTS}
    assert fires == names
    assert names - quiet <= {"NatsBackpressureDown"}, "`up` is none of our metrics"


def _full(rule: dict[str, Any]) -> str:
    """Its expression, with those of its recording rules."""
    expression: str = rule["expr"]
    for name, of in RECORDS.items():
        if name in expression:
            expression += " " + _full({"expr": of})
    return expression


def test_no_two_panels_lie_on_each_other() -> None:
    squares = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(squares) == len(set(squares)) and max(x for x, _ in squares) < 24
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
