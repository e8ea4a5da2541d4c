"""The demo's gateway process: an HTTP service that publishes each admitted request to the router's stream."""

from __future__ import annotations

import asyncio
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import nats
import uvicorn
from nats.errors import Error
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nats_backpressure.client import BackpressureClient, BackpressureMiddleware
from nats_backpressure.demo.scenario import PATH, SENT_AT, SUBJECT, Scenario

POLL_INTERVAL, REJECT_FOR = 5.0, 30.0
"""Seconds between two reads of the metrics page, and seconds for which it then rejects, as in the router's present
polling."""

KEEP_ALIVE = 600
"""Seconds that an idle connection stays open: a request on one that was just closed would count as failed."""

App = Callable[[Any, Any, Any], Awaitable[None]]


class PollingMiddleware:
    """Backpressure without events, to compare with: polls the sidecar's metrics and rejects for a while if active."""

    def __init__(self, app: App, page: str) -> None:
        self._app, self._page, self._until = app, page, 0.0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and time.monotonic() < self._until:
            await Response("overloaded", 503, {"retry-after": "30"})(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def poll(self) -> None:
        while True:
            text = await asyncio.to_thread(self._read)
            active = any(
                line.startswith("router_intake_backpressure_active{") and line.endswith(" 1.0")
                for line in text.splitlines()
            )
            if active:
                self._until = time.monotonic() + REJECT_FOR
            await asyncio.sleep(POLL_INTERVAL)

    def _read(self) -> str:
        try:
            with urllib.request.urlopen(self._page, timeout=2) as page:
                return str(page.read().decode())
        except OSError:
            return ""


async def main(scenario: Scenario, url: str, page: str, port: int, host: str = "127.0.0.1") -> None:
    nc = await nats.connect(url, max_reconnect_attempts=-1)
    js = nc.jetstream()
    client = BackpressureClient(nc)

    async def decide(request: Request) -> Response:
        sent_at = request.headers.get(SENT_AT) or str(time.monotonic())
        try:
            await js.publish(SUBJECT, b"decide", headers={SENT_AT: sent_at}, timeout=5)
        except (TimeoutError, Error) as error:
            return Response(str(error), 500)
        return Response(status_code=202)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if scenario.mode in ("binary", "adaptive"):
            await client.watch([SUBJECT])
        polling = asyncio.create_task(polled.poll()) if scenario.mode == "polling" else None
        yield
        if polling is not None:
            polling.cancel()
        await nc.close()

    app: App = Starlette(routes=[Route(PATH, decide, methods=["POST"])], lifespan=lifespan)
    polled = PollingMiddleware(app, page)
    if scenario.mode in ("binary", "adaptive"):
        app = BackpressureMiddleware(app, client, routes={PATH: SUBJECT})
    elif scenario.mode == "polling":
        app = polled
    config = uvicorn.Config(
        app, port=port, host=host, log_level="warning", access_log=False, timeout_keep_alive=KEEP_ALIVE
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Scenario), sys.argv[2], sys.argv[3], int(sys.argv[4])))
