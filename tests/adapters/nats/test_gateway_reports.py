"""Reports of gateways on a real server: a valid one is passed on, anything else is counted."""

from __future__ import annotations

import asyncio
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client

from nats_backpressure.adapters.nats.gateway_reports import MALFORMED, PER_SECOND, TOO_MANY, GatewayReportListener
from nats_backpressure.protocol.reports import SIZE_LIMIT, BadReport, GatewayReport, parse
from nats_backpressure.protocol.timestamps import Now

P = "backpressure.v1"
ON = f"{P}.report.gateway"
GOOD = b'{"offered": 1000, "admitted": 100, "seconds": 1.0}'


class Clock:
    def __init__(self) -> None:
        self.mono = 1000.0

    def now(self) -> Now:
        return Now(self.mono, 0.0)


class Recorder:
    """The listener with its sink and count; a test can wait for both."""

    def __init__(self) -> None:
        self.received: list[tuple[str, GatewayReport]] = []
        self.counted: Counter[str] = Counter()
        self.clock = Clock()
        self._news = asyncio.Event()
        self.reports = GatewayReportListener(P, self.clock, self._sink, self._count)

    def _sink(self, subject: str, report: GatewayReport) -> None:
        self.received.append((subject, report))
        self._news.set()

    def _count(self, what: str) -> None:
        self.counted[what] += 1
        self._news.set()

    async def until(self, received: int = 0, counted: int = 0) -> None:
        async with asyncio.timeout(10):
            while len(self.received) < received or self.counted.total() < counted:
                self._news.clear()
                await self._news.wait()


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        pytest.param(GOOD, GatewayReport(1000, 100, 1.0), id="as documented"),
        pytest.param(b'{"offered":0,"admitted":0,"seconds":60}', GatewayReport(0, 0, 60.0), id="a quiet minute"),
        pytest.param(
            b'{"offered":7,"admitted":7,"seconds":0.05,"name":"eu"}', GatewayReport(7, 7, 0.05), id="unknown fields"
        ),
    ],
)
def test_a_report_is_read(payload: bytes, expected: GatewayReport) -> None:
    assert parse(payload) == expected


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        pytest.param(b"", "truncated", id="nothing"),
        pytest.param(b"{}", "offered", id="an empty object"),
        pytest.param(b"[1,1,1]", "object", id="a list"),
        pytest.param(b"\xff\xfe", "", id="not UTF-8"),
        pytest.param(b"[" * SIZE_LIMIT, "", id="too deep"),
        pytest.param(b" " * SIZE_LIMIT + GOOD, "at most", id="too large"),
        pytest.param(b'{"offered":-1,"admitted":0,"seconds":1}', "$.offered", id="negative"),
        pytest.param(b'{"offered":1e10,"admitted":0,"seconds":1}', "$.offered", id="a float count"),
        pytest.param(b'{"offered":10000000000,"admitted":0,"seconds":1}', "$.offered", id="past all bounds"),
        pytest.param(b'{"offered":true,"admitted":0,"seconds":1}', "$.offered", id="a boolean"),
        pytest.param(b'{"offered":1,"admitted":null,"seconds":1}', "$.admitted", id="null"),
        pytest.param(b'{"offered":1,"admitted":2,"seconds":1}', "more was admitted", id="more admitted than offered"),
        pytest.param(b'{"offered":1,"admitted":1,"seconds":0}', "$.seconds", id="no time"),
        pytest.param(b'{"offered":1,"admitted":1,"seconds":61}', "$.seconds", id="too long ago"),
        pytest.param(b'{"offered":1,"admitted":1,"seconds":NaN}', "", id="no number"),
        pytest.param(b'{"offered":1,"admitted":1,"seconds":1e999}', "", id="no finite number"),
    ],
)
def test_a_bad_report_is_refused_with_its_reason(payload: bytes, says: str) -> None:
    with pytest.raises(BadReport, match=re.escape(says) or None):
        parse(payload)


@given(st.binary(max_size=200))
def test_no_payload_does_harm(payload: bytes) -> None:
    try:
        parsed = parse(payload)
    except BadReport:
        return
    assert 0 <= parsed.admitted <= parsed.offered


async def test_reports_reach_the_sink_under_the_subject_they_are_about(nc: Client) -> None:
    recorder = Recorder()
    await recorder.reports.listen(nc)
    await nc.publish(f"{ON}.orders.=2A.created", GOOD)
    await nc.publish(f"{ON}.orders.new", GOOD)
    await recorder.until(received=2)
    assert recorder.received == [(name, GatewayReport(1000, 100, 1.0)) for name in ("orders.*.created", "orders.new")]
    assert not recorder.counted


async def test_a_malformed_report_is_counted_and_the_next_is_read(nc: Client) -> None:
    recorder = Recorder()
    await recorder.reports.listen(nc)
    for on, payload in ((f"{ON}.a", b"x"), (f"{ON}.=2a", GOOD), (f"{ON}.a=41", GOOD), (f"{ON}.a", b"{}")):
        await nc.publish(on, payload)
    await nc.publish(f"{ON}.a", GOOD)
    await recorder.until(received=1)
    assert recorder.counted == {MALFORMED: 4}


async def test_of_ten_thousand_in_a_second_a_thousand_are_read_and_the_rest_is_counted(nc: Client) -> None:
    recorder = Recorder()
    await recorder.reports.listen(nc)
    sent = 10 * PER_SECOND
    for n in range(sent):
        await nc.publish(f"{ON}.a", GOOD)
        if n % 500 == 499:  # so that none is dropped before us
            await nc.flush()
            await recorder.until(counted=n + 1 - PER_SECOND)
    await recorder.until(received=PER_SECOND, counted=sent - PER_SECOND)
    assert len(recorder.received) == PER_SECOND
    assert recorder.counted == {TOO_MANY: sent - PER_SECOND}
    recorder.clock.mono += 1
    await nc.publish(f"{ON}.a", GOOD)
    await recorder.until(received=PER_SECOND + 1)
