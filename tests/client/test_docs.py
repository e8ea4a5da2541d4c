"""Runs every example of docs/client.md unchanged."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from starlette.responses import PlainTextResponse
from starlette.routing import Route as StarletteRoute

from nats_backpressure.client import BackpressureClient, PullGate
from tests.simulations.decision_service import GATEWAY, FakeDecisionService
from tests.simulations.state_bucket import States, active, state, wait_until
from tests.support.background import meanwhile
from tests.support.router import CONSUMER
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, eventually

PAGE = Path(__file__).parents[2] / "docs" / "client.md"
EXAMPLES = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def example(title: str, **before: Any) -> dict[str, Any]:
    """What the example under a heading defines, after `before`."""
    [source] = [source for heading, source in EXAMPLES if heading == title]
    defined: dict[str, Any] = dict(before)
    exec(compile(source, f"{PAGE.name}: {title}", "exec"), defined)
    return defined


def test_every_example_of_the_page_is_run_here() -> None:
    assert len(EXAMPLES) == PAGE.read_text().count("```python") == 8
    assert {title for title, _ in EXAMPLES} <= set(re.findall(r'example\("([^"]+)"', Path(__file__).read_text()))


async def test_the_gateway(nc: Client, server: NatsServer, states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", server.url)
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await states.put(active(SUBJECT))
    app = example("A gateway")["app"]
    transport = httpx.ASGITransport(app=app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://g") as http:
        assert (await http.post("/v1/decide")).json()["code"] == "service_overloaded"
        assert (await http.post("/v1/emergency")).status_code == 202


async def test_the_gateway_starts_serves_and_stops_while_nats_is_away(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await server.stop()
    monkeypatch.setenv("NATS_URL", server.url)
    # Of the application's own publish, which waits for nobody here; the page gives it the 5 s of nats-py.
    monkeypatch.setattr(Client, "jetstream", partialmethod(Client.jetstream, timeout=0.5))
    app = example("A gateway")["app"]
    app.router.routes.append(StarletteRoute("/ok", lambda _: PlainTextResponse("ok")))
    transport = httpx.ASGITransport(app=app)
    async with asyncio.timeout(20):
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://g") as http,
        ):
            assert (await http.get("/ok")).text == "ok"
            with pytest.raises(NatsError):  # the application's own publish, which was let through
                await http.post("/v1/decide")
            await wait_until(lambda: any(record.name == "gateway" for record in caplog.records), "a failed try")
    tracebacks = [record for record in caplog.records if record.exc_info and record.name != "asyncio"]
    assert not tracebacks


async def test_fastapi(client: BackpressureClient, states: States) -> None:
    await states.put(active("orders.full.created"), state("orders.calm.created"))
    await client.watch()
    transport = httpx.ASGITransport(app=example("FastAPI", backpressure=client)["app"])
    async with httpx.AsyncClient(transport=transport, base_url="http://g") as http:
        codes = [(await http.post(f"/tenants/{tenant}/orders")).status_code for tenant in ("full", "calm")]
    assert codes == [503, 200]


async def test_without_an_event_loop(server: NatsServer, states: States, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_URL", server.url)
    await states.put(active(SUBJECT))
    defined = example("Without an event loop")
    with defined["backpressure"] as threaded:
        assert threaded.start(wait=10)
        answers = [defined["handle"](SimpleNamespace(priority=priority)) for priority in ("normal", "critical")]
    assert [status for status, _, _ in answers] == [503, 202]
    assert 30 <= int(answers[0][1]["retry-after"]) <= 45


async def test_without_a_framework(nc: Client, states: States) -> None:
    await states.put(active("orders.full"), state("orders.calm"))
    handled, refused = [], []

    async def requests() -> AsyncIterator[SimpleNamespace]:
        for tenant in ("full", "calm"):
            yield SimpleNamespace(tenant=tenant, priority="normal")

    async def handle(request: SimpleNamespace) -> None:
        handled.append(request.tenant)

    async def refuse(request: SimpleNamespace, retry_after: float) -> None:
        refused.append((request.tenant, retry_after))

    await example("Without a framework")["gateway"](nc, requests(), handle, refuse)
    assert (handled, refused) == (["calm"], [("full", 30)])


async def test_asking(nc: Client) -> None:
    ask = example("Asking")["ask"]
    assert await ask(nc) == "go on"

    async def refused() -> bool:  # it waits a quarter of a second for an answer, which a busy machine may exceed
        return bool(await ask(nc) == "reject")

    async with FakeDecisionService(nc, lambda _: GATEWAY):
        await eventually(refused, "the answer")


async def test_the_next_stage(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])
    await js.add_consumer("ROUTER", CONSUMER)
    await js.add_stream(name="NEXT", subjects=["next.>"])

    async def handle(message: Any) -> bytes:
        return bytes(message.data)

    async def published() -> bool:
        return (await js.stream_info("NEXT")).state.messages == 3

    async with BackpressureClient.fixed() as client:
        gate = PullGate(client, await js.pull_subscribe_bind("router", "ROUTER"), SUBJECT)
        async with meanwhile(example("The next stage of a chain")["stage"](client, js, gate, handle)):
            for n in range(3):
                await js.publish(SUBJECT, str(n).encode())
            await eventually(published, "all of them in the next stage")


async def test_the_consumer(nc: Client) -> None:
    js = nc.jetstream()
    await js.add_stream(name="ROUTER", subjects=[SUBJECT])
    await js.add_consumer("ROUTER", CONSUMER)
    handled = []

    async def handle(message: Any) -> None:
        handled.append(message.data)

    grant = {"subject": SUBJECT, "role": "consumer", "pull": {"max_messages": 2, "wait_ms": 0}}
    async with FakeDecisionService(nc, lambda _: grant):
        async with meanwhile(example("A consumer")["router"](nc, handle)):
            for n in range(5):
                await js.publish(SUBJECT, str(n).encode())
            await wait_until(lambda: len(handled) == 5, "all of them")


async def test_events_and_counters(nc: Client) -> None:
    shown, counted = [], []
    client = await example("Events and counters")["observe"](nc, shown.append, counted.append)
    event = {"subject": SUBJECT, "epoch": "e", "seq": 1, "type": "recovery"}
    for _ in range(2):
        await nc.publish(f"backpressure.v1.event.recovery.{SUBJECT}", json.dumps(event).encode())
    await wait_until(lambda: counted == ["events", "events_dropped"], "both")
    assert shown == [event]
    await client.close()
