"""Subjects with values of a path: whatever a caller writes there, it is no way around an overloaded subject."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from nats_backpressure.client import BackpressureClient, BackpressureMiddleware, Route
from nats_backpressure.client.integrations.fastapi import Admit
from nats_backpressure.client.subject_template import filled_in, pattern_of
from nats_backpressure.protocol.patterns import covers, literal_problem, pattern_problem
from tests.simulations.state_bucket import States, active, state, wait_until

TEMPLATE = "orders.{tenant}.created"


@pytest.mark.parametrize(
    ("value", "subject", "pattern"),
    [
        ("acme", "orders.acme.created", "orders.*.created"),
        ("a-1_é", "orders.a-1_é.created", "orders.*.created"),
        ("joe@acme.com", "orders.joe@acme.com.created", "orders.>"),
        (1.5, "orders.1.5.created", "orders.>"),
        ("", None, "orders.*.created"),
        ("*", None, "orders.*.created"),
        (">", None, "orders.*.created"),
        ("a b", None, "orders.*.created"),
        ("a.*", None, "orders.>"),
        (".a", None, "orders.>"),
        ("x" * 257, None, "orders.*.created"),
    ],
)
def test_a_value_is_filled_in_with_its_dots_or_gives_no_subject(value: Any, subject: str | None, pattern: str) -> None:
    assert filled_in(TEMPLATE, {"tenant": value}) == subject
    assert pattern_of(TEMPLATE, {"tenant": value}) == pattern


@given(st.text(st.sampled_from("a.*> é\n"), max_size=6), st.text(max_size=6))
def test_it_is_a_plain_subject_that_its_pattern_covers_or_none(one: str, two: str) -> None:
    values = {"one": one, "two": two}
    subject, pattern = filled_in("o.{one}.x-{two}", values), pattern_of("o.{one}.x-{two}", values)
    assert pattern_problem(pattern) is None
    if subject is not None and subject.isprintable():
        assert literal_problem(subject) is None and covers(pattern, subject)


def gateway(client: BackpressureClient, path: str, subject: str, of: str) -> httpx.AsyncClient:
    async def handle(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    async def nothing() -> None: ...

    app: Any
    if of == "Admit":
        app = FastAPI()
        app.get(path, dependencies=[Depends(Admit(client, subject))])(nothing)
    else:
        guard = Middleware(BackpressureMiddleware, client=client, routes=[Route(path, subject)])
        app = Starlette(routes=[StarletteRoute(path, handle)], middleware=[guard])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


@pytest.mark.parametrize("of", ["middleware", "Admit"])
async def test_no_value_is_a_way_around(
    of: str, client: BackpressureClient, states: States, caplog: pytest.LogCaptureFixture
) -> None:
    await states.put(active("orders.>"), state("other.*.created"))
    await client.watch()
    names = ["acme", "acme.com", "joe@acme.com", "1.5", "*", "%3E", "a%20b", "a.", "..a", "x" * 300, ""]
    async with gateway(client, "/o/{tenant:path}", TEMPLATE, of) as http:
        assert {name: (await http.get(f"/o/{name}")).status_code for name in names} == dict.fromkeys(names, 503)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 1, "once for each route"
    assert "/o/{tenant:path}" in lines[0] and "{'tenant': '*'}" in lines[0]
    async with gateway(client, "/c/{tenant:path}", "other.{tenant}.created", of) as http:
        assert [(await http.get(f"/c/{name}")).status_code for name in names] == [200] * len(names)
    assert client.stats.no_subject == 0


async def test_the_strictest_state_decides_that_some_value_leads_to(client: BackpressureClient, states: States) -> None:
    await states.put(state("orders.*.created"), active("orders.acme.created"), active("orders.acme.deleted"))
    await client.watch()
    assert not client.admit_overlapping("orders.*.created")
    assert not client.admit_overlapping("orders.>")
    assert client.admit_overlapping("orders.*.changed"), "nobody watches it"
    assert client.stats.unwatched == 1
    await states.put(state("orders.acme.created"))
    await wait_until(lambda: bool(client.admit_overlapping("orders.*.created")), "the calm state")


@pytest.mark.parametrize("path", ["/f/1.5", "/f/1"])
async def test_a_float_may_be_in_a_subject(path: str) -> None:
    async with gateway(BackpressureClient.fixed("reject"), "/f/{id:float}", "f.{id}.x", "middleware") as http:
        assert (await http.get(path)).status_code == 503
