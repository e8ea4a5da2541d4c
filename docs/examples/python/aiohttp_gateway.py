"""A gateway in aiohttp: its requests are answered with 503 and Retry-After while their subject is overloaded."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient, Refusal

SUBJECTS = {"decide": "beamline.router.v1.decide"}
"""By the name of the route."""

log = logging.getLogger("gateway")
nc = Client()
backpressure = BackpressureClient(nc)


async def log_error(error: Exception) -> None:
    log.warning("NATS: %r", error)  # without a callback nats-py logs a traceback at each try


@web.middleware
async def refuse(request: web.Request, handler: Handler) -> web.StreamResponse:
    subject = SUBJECTS.get(request.match_info.route.name or "")
    if subject is None or (admission := backpressure.admit(subject)):
        return await handler(request)
    refusal = Refusal.of(admission)
    return web.Response(
        body=refusal.body, status=refusal.status_code, headers=refusal.headers, content_type=refusal.content_type
    )


async def decide(request: web.Request) -> web.Response:
    return web.Response(text="accepted", status=202)


async def connection(app: web.Application) -> AsyncIterator[None]:
    connecting = asyncio.create_task(nc.connect(os.environ["NATS_URL"], max_reconnect_attempts=-1, error_cb=log_error))
    async with backpressure:
        await backpressure.watch(SUBJECTS.values(), timeout=2)
        yield
    connecting.cancel()
    await nc.close()


app = web.Application(middlewares=[refuse])
app.router.add_post("/v1/decide", decide, name="decide")
app.cleanup_ctx.append(connection)

if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]))
