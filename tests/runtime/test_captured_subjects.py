"""Streams that store our request subjects are logged once."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.protocol.endpoints import ENDPOINTS, Endpoint
from nats_backpressure.runtime.captured_subjects import CapturedSubjects


def look(name: str, *subjects: str) -> StreamLook:
    return StreamLook(name, "t", 0, 0, 0, subjects)


def test_a_stream_that_stores_a_subject_captures_it() -> None:
    captured = CapturedSubjects("p", None)
    captured.update([look("A", "a.>"), look("B", "a.b"), look("C")])
    assert captured.streams_of("a.b") == ["A", "B"]


def test_each_stream_and_subject_is_logged_once() -> None:
    captured = CapturedSubjects("p", "status")
    with capture_logs() as logged:
        captured.update([look("A", "other")])
        captured.update([look("A", "p.decide.>", "status")])
        captured.update([look("A", "p.decide.>", "status"), look("B", "p.decide.gateway.*")])
    assert [(line["stream"], line["subject"]) for line in logged] == [
        ("A", "p.decide.gateway.x"),
        ("A", "p.decide.consumer.x"),
        ("A", "status"),
        ("B", "p.decide.gateway.x"),
    ]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_every_endpoint_is_checked(endpoint: Endpoint) -> None:
    captured = CapturedSubjects("p", None)
    with capture_logs() as logged:
        captured.update([look("A", f"p.{endpoint.subject}")])
    assert logged


def test_a_capture_that_comes_back_is_logged_again() -> None:
    captured = CapturedSubjects("p", None)
    with capture_logs() as logged:
        for subject in ("p.get.status", "other", "p.get.status"):
            captured.update([look("A", subject)])
    assert [line["subject"] for line in logged] == ["p.get.status"] * 2


def test_only_an_alias_is_checked_after_a_list() -> None:
    checks: list[str] = []
    for alias in ("status", None):
        captured = CapturedSubjects("p", alias)
        captured.on_update = lambda: checks.append("check")
        captured.update([])
    assert checks == ["check"]
