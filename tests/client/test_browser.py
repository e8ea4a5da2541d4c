"""What a page of another origin sees of a refusal in a real browser: with CORS around the middleware and within it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.routing import Mount, Route

from nats_backpressure.client import BackpressureClient, BackpressureMiddleware
from nats_backpressure.client.integrations.fastapi import Admit
from tests.support.browser import browsing
from tests.support.serving import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PATIENCE = 60
"""Seconds for the browser to start and to run the script."""
PAGE = """<!doctype html><title>a page of another origin</title><script>
const json = {method: "POST", headers: {"Content-Type": "application/json"}, body: "{}"};
async function seen(path, request) {
  try {
    const reply = await fetch(API + path, request);
    const body = await reply.text();
    return {status: reply.status, retry_after: reply.headers.get("Retry-After"), body: body};
  } catch (error) {
    return {error: error.name};
  }
}
async function run() {
  const results = {};
  for (const app of ["outside", "within", "unexposed", "fastapi"]) {
    results[app] = {};
    for (const path of ["orders", "others"]) results[app][path] = await seen(`/${app}/${path}`, json);
    results[app].get = await seen(`/${app}/orders`);
  }
  await fetch("/results", {method: "POST", body: JSON.stringify(results)});
}
run();
</script>"""


async def accept(request: Request) -> PlainTextResponse:
    return PlainTextResponse("done", 202)


def gateway(client: BackpressureClient, *, cors_outside: bool, expose: bool = True) -> Starlette:
    exposed = ["Retry-After"] if expose else []
    cors = Middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=exposed
    )
    ours = Middleware(BackpressureMiddleware, client=client, routes={"/orders": "orders"})
    routes = [Route(path, accept, methods=["GET", "POST"]) for path in ("/orders", "/others")]
    return Starlette(routes=routes, middleware=[cors, ours] if cors_outside else [ours, cors])


def fastapi(client: BackpressureClient) -> FastAPI:
    app = FastAPI()
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=["Retry-After"]
    )
    guarded = [Depends(Admit(client, "orders"))]
    app.add_api_route("/orders", lambda: "done", methods=["GET", "POST"], dependencies=guarded, status_code=202)
    app.add_api_route("/others", lambda: "done", methods=["POST"], status_code=202)
    return app


async def test_a_page_of_another_origin_can_read_the_refusal_and_its_time(tmp_path: Path) -> None:
    clients = {
        name: BackpressureClient.fixed("reject", retry_after_seconds=7) for name in ("outside", "within", "x", "f")
    }
    outside, within, unexposed, of_fastapi = clients.values()
    api = Starlette(
        routes=[
            Mount("/outside", gateway(outside, cors_outside=True)),
            Mount("/within", gateway(within, cors_outside=False)),
            Mount("/unexposed", gateway(unexposed, cors_outside=True, expose=False)),
            Mount("/fastapi", fastapi(of_fastapi)),
        ]
    )
    results: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def take(request: Request) -> PlainTextResponse:
        results.set_result(json.loads(await request.body()))
        return PlainTextResponse("")

    async with serving(api) as address:
        page = HTMLResponse(PAGE.replace("API", json.dumps(address)))
        site = Starlette(routes=[Route("/", lambda _: page), Route("/results", take, methods=["POST"])])
        async with serving(site) as url, browsing(url, tmp_path):
            async with asyncio.timeout(PATIENCE):
                seen = await results
    for app in ("outside", "fastapi"):
        for request in ("orders", "get"):
            refused = seen[app][request]
            assert refused["status"] == 503 and 7 <= int(refused["retry_after"]) <= 11, app
    assert json.loads(seen["outside"]["orders"]["body"])["code"] == "service_overloaded"
    assert seen["unexposed"]["orders"]["status"] == 503 and seen["unexposed"]["orders"]["retry_after"] is None
    # With CORS within, the refusal has no CORS headers: the browser shows the script an error, and no status.
    assert seen["within"]["orders"] == seen["within"]["get"] == {"error": "TypeError"}
    assert [seen[app]["others"]["status"] for app in seen] == [202] * 4
    # Each POST to another origin begins with a preflight. Those that come to the middleware pass it.
    assert (within.stats.exempt, within.stats.shed) == (2, 2)
    assert (outside.stats.exempt, outside.stats.shed) == (0, 2)
