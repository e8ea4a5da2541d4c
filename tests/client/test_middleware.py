"""The middleware in front of a Starlette application, and raw ASGI where Starlette would be in the way."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount
from starlette.routing import Route as StarletteRoute

from nats_backpressure.client import BackpressureClient, BackpressureMiddleware, Route, held_rate
from nats_backpressure.client.refusal import Refusal, jittered
from nats_backpressure.client.shedder import BAND
from nats_backpressure.client.stats import MAX_REPORTED
from tests.simulations.state_bucket import SUBJECT, States, active, state, wait_until


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


@pytest.fixture
def share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause of the machine is no load that fell."""
    monkeypatch.setattr(held_rate, "ENOUGH", math.inf)


@pytest.mark.usefixtures("share_alone")
async def test_a_share_is_admitted_and_spread_evenly(http: httpx.AsyncClient) -> None:
    codes = [(await http.get("/thin")).status_code for _ in range(20)]
    assert codes == [202, 503] * 10


@pytest.mark.usefixtures("share_alone")
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
    assert overloaded.stats.no_subject == 3 and overloaded.stats.route_error == 1
    (record,) = (record for record in caplog.records if "route /{which}" in record.message)
    assert record.exc_info is not None and record.exc_info[0] is not None, "with the traceback of the first"


async def test_a_subject_is_filled_in_from_the_path(overloaded: BackpressureClient, states: States) -> None:
    await states.put(active("orders.acme.created"))
    await wait_until(lambda: not overloaded.admit("orders.acme.created"), "the state")
    routes = [
        Route("/t/{tenant}", "orders.{tenant}.created"),
        Route("/f/{tenant}", lambda scope: f"orders.{scope['path_params']['tenant']}.created"),
    ]
    async with gateway(overloaded, routes) as http:
        codes = {
            path: (await http.get(path)).status_code for path in ("/t/acme", "/f/acme", "/t/calm", "/t/a.b", "/t/%2A")
        }
    assert codes == {"/t/acme": 503, "/f/acme": 503, "/t/calm": 202, "/t/a.b": 202, "/t/%2A": 503}
    assert overloaded.stats.no_subject == 0 and overloaded.stats.route_error == 0


async def test_a_mount_and_a_prefix_of_the_proxy_change_nothing(overloaded: BackpressureClient) -> None:
    """`uvicorn --root-path`, with and without a proxy that removes the prefix, and an application inside another."""
    guarded = BackpressureMiddleware(
        Starlette(routes=[StarletteRoute("/orders", handle, methods=["GET"])]), overloaded, {"/orders": SUBJECT}
    )
    outer = Starlette(routes=[Mount("/api", guarded), Mount("/v1/{tenant}", guarded)])
    for app, root, path in (
        (guarded, "", "/orders"),
        (guarded, "/api", "/api/orders"),
        (guarded, "/api", "/orders"),
        (guarded, "/orders", "/orders/orders"),
        (outer, "", "/api/orders"),
        (outer, "/proxy", "/proxy/v1/acme/orders"),
    ):
        transport = httpx.ASGITransport(app=app, root_path=root)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            assert (await http.get(path)).status_code == 503, (root, path)


async def test_neither_head_nor_a_slash_at_the_end_goes_around_it(overloaded: BackpressureClient) -> None:
    routes = [Route("/orders", SUBJECT, methods=["GET"]), Route("/calm/", "calm")]
    async with gateway(overloaded, routes) as http:
        assert [(await http.request(method, "/orders")).status_code for method in ("GET", "HEAD")] == [503, 503]
        assert (await http.get("/orders/")).status_code == 503
        assert (await http.get("/calm")).status_code == 202
    assert overloaded.stats.unknown_route == 0


async def test_a_preflight_is_never_shed_and_a_browser_sees_the_refusal(overloaded: BackpressureClient) -> None:
    """With CORS outside, as docs/client.md has it. An OPTIONS that is no preflight is a request as any other."""
    app = Starlette(
        routes=[StarletteRoute("/orders", handle, methods=["POST", "OPTIONS"])],
        middleware=[
            Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"], expose_headers=["Retry-After"]),
            Middleware(BackpressureMiddleware, client=overloaded, routes={"/orders": SUBJECT}),
        ],
    )
    ask = {"origin": "http://shop", "access-control-request-method": "POST"}
    cors = CORSMiddleware(app, allow_origins=["*"], allow_methods=["*"])
    inside_out = BackpressureMiddleware(cors, overloaded, {"/orders": SUBJECT})
    for each in (app, inside_out):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=each), base_url="http://gateway") as http:
            assert (await http.options("/orders", headers=ask)).status_code == 200
            assert (await http.options("/orders", headers={"origin": "http://shop"})).status_code == 503
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as http:
        reply = await http.post("/orders", headers={"origin": "http://shop"})
    assert reply.status_code == 503
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-expose-headers"] == "Retry-After"


async def test_without_a_client_it_is_off_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    app = BackpressureMiddleware(Starlette(routes=[StarletteRoute("/orders", handle)]), None, {"/orders": SUBJECT})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as http:
        assert [(await http.get("/orders")).status_code for _ in range(3)] == [202, 202, 202]
    assert sum("no backpressure client" in record.message for record in caplog.records) == 1


async def test_each_unknown_path_is_named_once_and_their_number_is_bounded(
    overloaded: BackpressureClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with gateway(overloaded, {"/orders": SUBJECT}) as http:
        for n in range(MAX_REPORTED + 5):
            await http.get("/favicon.ico")
            await http.get(f"/other/{n}")
    lines = [record for record in caplog.records if "no route for" in record.message]
    assert {record.levelno for record in lines} == {logging.INFO}
    assert sum("favicon" in record.message for record in lines) == 1
    assert len(lines) <= MAX_REPORTED + 1 and overloaded.stats.unknown_route == 2 * (MAX_REPORTED + 5)


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_gateway_may_answer_in_its_own_way(
    kind: str, overloaded: BackpressureClient, caplog: pytest.LogCaptureFixture
) -> None:
    answers: dict[str, Any] = {
        "plain": lambda refusal: PlainTextResponse("busy", refusal.status_code),
        "later": lambda refusal: PlainTextResponse("busy", 429, {"Retry-After": "7"}),
        "broken": lambda refusal: {}["missing"],
        "none": lambda refusal: None,
    }

    def on_shed(scope: Any, refusal: Refusal) -> Any:
        return answers[scope["path"][1:]](refusal)

    async def on_shed_async(scope: Any, refusal: Refusal) -> Any:
        return on_shed(scope, refusal)

    own = on_shed_async if kind == "async" else on_shed
    async with gateway(overloaded, [Route("/{which}", SUBJECT)], on_shed=own) as http:
        plain, later, broken, none, _ = [await http.get(f"/{which}") for which in (*answers, "broken")]
    assert (plain.text, plain.status_code, plain.headers["cache-control"]) == ("busy", 503, "no-store")
    assert int(plain.headers["retry-after"]) >= 30
    assert (later.status_code, later.headers["retry-after"]) == (429, "7")
    assert (none.status_code, none.json()["code"]) == (503, "service_overloaded")
    assert (broken.status_code, broken.json()["code"]) == (503, "service_overloaded")
    raised = [record.exc_info for record in caplog.records if "on_shed raised" in record.message]
    assert len(raised) == 2 and all(raised), "each kind once, with its traceback"


@pytest.mark.parametrize(("subprotocols", "chosen"), [([], None), (["graphql-ws", "other"], "graphql-ws")])
async def test_a_websocket_is_accepted_and_closed_with_try_again_later(
    overloaded: BackpressureClient, subprotocols: list[str], chosen: str | None
) -> None:
    sent: list[Any] = []

    async def app(*given: Any) -> None:
        sent.append("the application")

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    routes = [Route("/orders", SUBJECT, methods=["GET"]), Route("/calm", "calm")]
    for path in ("/orders", "/calm"):
        scope = {"type": "websocket", "path": path, "headers": [], "subprotocols": subprotocols}
        await BackpressureMiddleware(app, overloaded, routes)(scope, receive, send)
    accept, close, passed = sent
    assert (accept["type"], accept["subprotocol"], passed) == ("websocket.accept", chosen, "the application")
    assert (close["type"], close["code"]) == ("websocket.close", 1013)
    assert close["reason"].startswith("retry after ")


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
