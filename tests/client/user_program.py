"""A user's program with everything that the client exports. It is never run: `mypy --strict` reads it."""

from __future__ import annotations

from functools import partial

from fastapi import Depends, FastAPI
from nats.aio.client import Client
from opentelemetry.metrics import get_meter
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response

from nats_backpressure.client import (
    Admission,
    Answer,
    BackpressureClient,
    BackpressureMiddleware,
    Event,
    Overloaded,
    Priority,
    PullGate,
    Refusal,
    Role,
    Route,
    Scope,
    Stats,
    ThreadedClient,
)
from nats_backpressure.client.integrations.fastapi import Admit
from nats_backpressure.client.integrations.opentelemetry import observe_stats
from nats_backpressure.client.integrations.prometheus import export_stats


def subject_of(scope: Scope) -> str:
    return f"orders.{scope['path_params']['tenant']}"


def priority_of(scope: Scope) -> Priority:
    return "high" if scope["path"] == "/vip" else "normal"


def busy(scope: Scope, refusal: Refusal) -> Response:
    return PlainTextResponse(refusal.detail, refusal.status_code)


def count(name: str, subject: str) -> None:
    print(name, subject)


def show(event: Event) -> None:
    print(event["type"])


async def show_later(event: Event) -> None:
    show(event)


async def gateway(nc: Client) -> tuple[Admission, Answer, Stats]:
    client = BackpressureClient(nc, name="backpressure", report_every=1.0, on_count=count)
    async with client:
        watched: bool = await client.watch(["orders.>"], timeout=2)
        await client.on_event(show)
        await client.on_event(show_later, "orders.created")
        export_stats(client, registry=REGISTRY)
        observe_stats(get_meter("gateway"), client)
        role: Role = "gateway"
        answer = await client.decide("orders.created", role, priority="low", timeout=0.25)
        print(watched, answer.failed_open, answer.retry_delay_ms)
        return client.admit("orders.created", "critical"), answer, client.stats


async def worker(nc: Client, client: BackpressureClient) -> None:
    js = nc.jetstream()
    subscription = await js.pull_subscribe_bind("router", "ROUTER")
    gate = PullGate(client, subscription, "orders.created", stream="ROUTER", consumer="router")
    async for message in gate.messages(batch=10):
        try:
            ack = await client.publish(js, "next.stage", message.data, priority="normal", wait=5.0)
        except Overloaded as refused:
            print(refused.retry_after_seconds, refused.admission.status)
        else:
            print(ack.seq)


def threads(subject: str) -> tuple[int, dict[str, str], str, bytes] | None:
    make = partial(BackpressureClient, name="eu")
    with ThreadedClient(["nats://localhost:4222"], ["orders.>"], make=make, user_credentials="gateway.creds") as client:
        ready: bool = client.start(wait=2.0)
        export_stats(client, ThreadedClient.fixed("continue"))
        admission: Admission = client.admit(subject, priority="low")
        if admission or not ready:
            return None
        refusal = Refusal.of(admission, 429)
        return refusal.status_code, refusal.headers, refusal.content_type, refusal.body


def application() -> Starlette:
    client = BackpressureClient.fixed("throttle", admit_ratio=0.25)
    routes = [
        Route("/orders/{tenant}", subject_of, methods=["POST"], priority=priority_of),
        Route("/v1/decide", "beamline.router.v1.decide", priority="critical"),
    ]
    return Starlette(middleware=[Middleware(BackpressureMiddleware, client=client, routes=routes, on_shed=busy)])


def fastapi_application(client: BackpressureClient | None) -> FastAPI:
    return FastAPI(dependencies=[Depends(Admit(client, "orders.{tenant}", priority="high"))])
