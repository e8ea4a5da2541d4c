"""What every overload must show: events, metrics, rejections, and the return to calm."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

from nats_backpressure.demo.scenario import SUBJECT
from nats_backpressure.demo.summary import RunData

STATUS_EVENTS = ("backpressure_active", "backpressure_warning", "recovery")


def overload_reported_and_over(data: RunData, *reasons: str) -> None:
    """It was published with at least one of these reasons, the gateway rejected, and all admitted messages are done."""
    kinds = Counter(event["type"] for event in data.events)
    assert kinds["backpressure_active"], f"backpressure never came: {dict(kinds)}"
    first = next(event for event in data.events if event["type"] == "backpressure_active")
    assert not reasons or set(reasons) & set(first["reasons"]), first["reasons"]
    assert first["retry_after_seconds"] > 0
    shed_while_active(data)
    back_to_calm(data)


def shed_while_active(data: RunData) -> None:
    assert data.callers["shed"], "no request was rejected"
    assert data.callers["failed"] == 0, f"{data.callers['failed']} requests got neither 202 nor 503"
    assert any(row.status == "active" and row.shed > row.admitted for row in data.rows)


def back_to_calm(data: RunData) -> None:
    """The events have no gap, the last one is the recovery, the metrics agree, and no message is left."""
    assert [event["seq"] for event in data.events] == list(range(1, len(data.events) + 1))
    assert all(one["to"] == other["from"] for one, other in pairwise(data.events))
    changes = [event for event in data.events if event["type"] in STATUS_EVENTS]
    assert (changes[-1]["type"], changes[-1]["to"], changes[-1]["incident"]) == (
        "recovery",
        "inactive",
        changes[-2]["incident"],
    )
    for kind, n in Counter(event["type"] for event in data.events).items():
        assert metric(data, "router_backpressure_events_total", subject=SUBJECT, event_type=kind) == n, kind
    assert metric(data, "router_intake_backpressure_active", subject=SUBJECT) == 0
    assert data.unfinished == 0
    clean(data)


def clean(data: RunData) -> None:
    """No message was delivered twice, none was given up, and every admitted message was done."""
    assert (data.worker["redelivered"], data.worker["naked"], data.lost) == (0, 0, 0)
    assert data.worker["done"] == data.callers["admitted"]


def metric(data: RunData, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(data.metrics_page):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return sample.value
    raise AssertionError(f"{name} {labels} is not on the page")
