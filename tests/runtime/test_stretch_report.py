"""A budget that is too small is logged once, after a while, and again once it is large enough."""

from __future__ import annotations

from structlog.testing import capture_logs

from nats_backpressure.runtime.stretch_report import STRETCHED_FOR, StretchReport


def test_it_is_logged_once_and_when_it_is_over() -> None:
    report = StretchReport()
    with capture_logs() as logged:
        for second, stretch in ((0, 3.0), (STRETCHED_FOR - 1, 3.0)):
            report.report(stretch, 7, second)
        assert not logged
        for second, stretch in ((1, 3.0), (2, 4.0), (3, 1.5), (4, 1.0), (5, 1.0)):
            report.report(stretch, 7, STRETCHED_FOR + second)
    assert [(line["event"], line["streams"]) for line in logged] == [("reading.stretched", 7), ("reading.in_budget", 7)]


def test_a_start_that_is_over_soon_is_not_logged() -> None:
    report = StretchReport()
    with capture_logs() as logged:
        for second in range(int(3 * STRETCHED_FOR)):
            report.report(1.9 if second % 50 == 0 else 5.0, 7, second)
    assert not logged
