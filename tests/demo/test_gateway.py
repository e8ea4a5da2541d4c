"""The gateway that polls metrics rejects for a while after it saw an active subject."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from nats_backpressure.demo import gateway
from nats_backpressure.demo.gateway import PollingMiddleware


async def status_of(middleware: PollingMiddleware) -> int:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await middleware({"type": "http", "method": "POST", "path": "/decide", "headers": []}, None, send)
    return int(sent[0]["status"])


async def admit(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 202, "headers": []})


@pytest.mark.parametrize(("value", "status"), [("0.0", 202), ("1.0", 503)])
async def test_an_active_subject_on_the_metrics_page_rejects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, status: int
) -> None:
    monkeypatch.setattr(gateway, "POLL_INTERVAL", 0.01)
    page = tmp_path / "metrics"
    page.write_text(f'router_intake_backpressure_active{{subject="a"}} {value}\n')
    middleware = PollingMiddleware(admit, page.as_uri())
    assert await status_of(middleware) == 202
    polling = asyncio.create_task(middleware.poll())
    async with asyncio.timeout(10):
        while await status_of(middleware) != status:
            await asyncio.sleep(0.01)
    polling.cancel()


async def test_a_metrics_page_that_cannot_be_read_rejects_nothing(tmp_path: Path) -> None:
    middleware = PollingMiddleware(admit, (tmp_path / "missing").as_uri())
    assert middleware._read() == ""
    assert await status_of(middleware) == 202
