"""The middleware in front of a Starlette application, and raw ASGI where Starlette would be in the way."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from nats_backpressure.client import BackpressureClient, BackpressureMiddleware, Route
from nats_backpressure.client.middleware import jittered
from nats_backpressure.client.shedder import BAND
from tests.simulations.state_bucket import SUBJECT, States, active, state


async def handle(request: Request) -> PlainTextResponse:
    return PlainTextResponse("done", 202)


def gateway(client: BackpressureClient, routes: Any, **options: Any) -> httpx.AsyncClient:
    app = Starlette(
        routes=[StarletteRoute("/{path:path}", handle, methods=["GET", "POST"])],
        middleware=[Middleware(BackpressureMiddleware, client=client, routes=routes, **options)],
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


@pytest.fixture
async def overloaded(client: BackpressureClient, states: States) -> BackpressureClient:
    await states.put(active(), state("calm"), state("thin", action="throttle", admit_ratio=0.5, retry_after_seconds=2))
    await client.watch()
    return client


@pytest.fixture
async def http(overloaded: BackpressureClient) -> AsyncIterator[httpx.AsyncClient]:
    async with gateway(overloaded, {"/orders": SUBJECT, "/calm/{id}": "calm", "/thin": "thin"}) as http:
        yield http


async def test_an_overloaded_route_is_refused_with_a_time_and_a_problem(http: httpx.AsyncClient) -> None:
    reply = await http.post("/orders")
    assert reply.status_code == 503
    retry_after = int(reply.headers["retry-after"])
    assert 30 <= retry_after <= 45
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.json() == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        "detail": f"The service is overloaded; try again in {retry_after} s.",
        "code": "service_overloaded",
        "retry_after_seconds": retry_after,
    }
    assert SUBJECT not in reply.text


async def test_refused_requests_get_different_times(http: httpx.AsyncClient) -> None:
    times = {(await http.get("/orders")).headers["retry-after"] for _ in range(60)}
    assert len(times) >= 8


async def test_a_calm_an_exempt_and_an_unknown_route_are_admitted(
    http: httpx.AsyncClient, client: BackpressureClient
) -> None:
    paths = ["/calm/1", "/healthz", "/metrics", "/elsewhere", "/orders/1", "/calm/1/2"]
    assert [(await http.get(path)).status_code for path in paths] == [202] * len(paths)
    assert (client.stats.exempt, client.stats.unknown_route, client.stats.admitted) == (2, 3, 1)


async def test_a_share_is_admitted_and_spread_evenly(http: httpx.AsyncClient) -> None:
    codes = [(await http.get("/thin")).status_code for _ in range(20)]
    assert codes == [202, 503] * 10


async def test_critical_is_never_shed_and_the_low_ones_are_first(overloaded: BackpressureClient) -> None:
    routes = [
        Route("/orders", SUBJECT, priority=lambda scope: dict(scope["headers"])[b"x-priority"].decode()),
        Route("/thin/{rest:path}", "thin", priority=lambda scope: scope["path"].split("/")[-1]),
    ]
    async with gateway(overloaded, routes) as http:
        for priority, code in (("critical", 202), ("high", 503), ("low", 503)):
            assert (await http.get("/orders", headers={"x-priority": priority})).status_code == code
        shares = dict.fromkeys(("low", "normal", "high", "critical"), 0)
        for n in range(400):
            priority = list(shares)[n % 4]
            shares[priority] += (await http.get(f"/thin/a/b/{priority}")).status_code == 202
    assert shares["critical"] == 100 and shares["high"] >= 98 and shares["low"] <= 2
    assert abs(shares["high"] + shares["normal"] + shares["low"] - 150) <= BAND


async def test_backpressure_goes_before_a_rate_limit_of_the_application(overloaded: BackpressureClient) -> None:
    async def limit(request: Request) -> PlainTextResponse:
        return PlainTextResponse("too many", 429)

    app = Starlette(routes=[StarletteRoute("/{path:path}", limit)])
    guarded = BackpressureMiddleware(app, overloaded, {"/orders": SUBJECT, "/calm": "calm"})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=guarded), base_url="http://gateway") as http:
        assert (await http.get("/orders")).status_code == 503
        assert (await http.get("/calm")).status_code == 429


async def test_the_first_route_that_matches_path_and_method_decides(overloaded: BackpressureClient) -> None:
    routes = [Route("/orders", SUBJECT, methods=["post"]), Route("/orders", "calm")]
    async with gateway(overloaded, routes) as http:
        assert (await http.post("/orders")).status_code == 503
        assert (await http.get("/orders")).status_code == 202


async def test_a_subject_may_come_from_the_request_and_an_error_there_admits(
    overloaded: BackpressureClient, caplog: pytest.LogCaptureFixture
) -> None:
    subjects: dict[str, Any] = {"active": SUBJECT, "none": None, "odd": 7, "list": []}
    routes = [Route("/{which}", lambda scope: subjects[scope["path"][1:]])]
    async with gateway(overloaded, routes) as http:
        codes = [(await http.get(f"/{which}")).status_code for which in ("active", "none", "odd", "list", "missing")]
    assert codes == [503, 202, 202, 202, 202]
    assert overloaded.stats.no_subject == 1 and overloaded.stats.route_error == 3
    assert sum("route /{which}" in record.message for record in caplog.records) == 1


async def test_the_status_may_be_429_and_nothing_else(overloaded: BackpressureClient) -> None:
    async with gateway(overloaded, {"/orders": SUBJECT}, status_code=429) as http:
        reply = await http.get("/orders")
    assert (reply.status_code, reply.json()["title"], reply.json()["status"]) == (429, "Too Many Requests", 429)
    with pytest.raises(ValueError, match="503 or 429"):
        BackpressureMiddleware(handle, overloaded, {}, status_code=200)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_anything_but_a_request_passes_unchanged(client: BackpressureClient, kind: str) -> None:
    seen = []

    async def app(*given: Any) -> None:
        seen.append(given)

    given: tuple[Any, Any, Any] = ({"type": kind, "path": "/orders"}, object(), object())
    await BackpressureMiddleware(app, client, {"/orders": SUBJECT})(*given)
    assert seen == [given] and client.stats.unknown_route == 0


async def test_before_anything_is_known_everything_is_admitted(client: BackpressureClient) -> None:
    async with gateway(client, {"/orders": SUBJECT}) as http:
        assert (await http.get("/orders")).status_code == 202


@pytest.mark.parametrize(
    ("seconds", "least", "most"),
    [(0, 1, 2), (0.2, 1, 2), (1, 1, 2), (10, 10, 15), (30, 30, 45), (1e12, 86_400, 129_600)],
)
def test_retry_after_is_never_shortened(seconds: float, least: int, most: int) -> None:
    random.seed(1)
    times = [jittered(seconds) for _ in range(2000)]
    assert min(times) >= least and max(times) <= most and len(set(times)) >= min(2, most - least + 1)
