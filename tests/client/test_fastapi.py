"""The FastAPI dependency, in a FastAPI application."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI

from nats_backpressure.client import BackpressureClient
from nats_backpressure.client.integrations import fastapi
from nats_backpressure.client.integrations.fastapi import Admit
from nats_backpressure.client.refusal import CODE
from nats_backpressure.client.stats import OFF, OnceLogger, log
from tests.simulations.state_bucket import States, active, state


def gateway(client: BackpressureClient | None) -> httpx.AsyncClient:
    app, guard, urgent = FastAPI(), Admit(client, "orders.{tenant}"), Admit(client, "orders.acme", priority="critical")

    async def order(tenant: str, admission: Any = Depends(guard)) -> dict[str, str]:  # noqa: B008  # FastAPI's own way
        return {"tenant": tenant, "action": admission.action if admission else "off"}

    app.post("/tenants/{tenant}/orders")(order)
    app.post("/urgent/{tenant}", dependencies=[Depends(urgent)])(order)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


async def test_a_request_is_refused_while_the_subject_of_its_path_is_overloaded(
    client: BackpressureClient, states: States
) -> None:
    await states.put(active("orders.acme"), state("orders.calm"))
    await client.watch()
    async with gateway(client) as http:
        refused, admitted, urgent = [
            await http.post(path) for path in ("/tenants/acme/orders", "/tenants/calm/orders", "/urgent/calm")
        ]
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 30
    assert "acme" not in refused.text and refused.json()["detail"]["code"] == CODE
    assert str(refused.json()["detail"]["retry_after_seconds"]) == refused.headers["retry-after"]
    assert admitted.json() == {"tenant": "calm", "action": "continue"}
    assert urgent.status_code == 200


async def test_without_a_client_it_is_off_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fastapi, "_said", OnceLogger())
    caplog.set_level(logging.INFO)
    async with gateway(None) as http:
        assert (await http.post("/tenants/acme/orders")).json() == {"tenant": "acme", "action": "off"}
    assert [record.message for record in caplog.records if record.name == log.name] == [OFF]


@pytest.mark.parametrize("where", ["route", "router", "application", "mount"])
async def test_a_name_that_the_path_does_not_have_is_logged_with_the_first_request(
    caplog: pytest.LogCaptureFixture, where: str
) -> None:
    """Also where the dependency is not the route's own, and once for each route."""
    client = BackpressureClient.fixed("continue")
    depends = [Depends(Admit(client, "orders.{tenat}"))]
    app, inner, router = FastAPI(dependencies=depends if where == "application" else None), FastAPI(), APIRouter()
    at = {"router": router, "mount": inner}.get(where, app)
    own = depends if where in ("route", "mount") else []
    for path in ("/tenants/{tenant}/orders", "/status"):
        at.get(path, dependencies=own)(lambda: "ok")
    app.include_router(router, dependencies=depends) if where == "router" else app.mount("/inner", inner)
    prefix = "/inner" if where == "mount" else ""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as http:
        for path in ("/tenants/acme/orders", "/tenants/other/orders", "/status") * 2:
            assert (await http.get(prefix + path)).status_code == 200
    warnings = [record.message for record in caplog.records if record.name == log.name]
    assert len(warnings) == 2 and all("has no {tenat}" in warning for warning in warnings)
    assert "/tenants/{tenant}/orders" in warnings[0] and "/status" in warnings[1]


@pytest.mark.parametrize("wrong", [{"subject": "a b"}, {"priority": "hi"}, {"status_code": 500}])
def test_what_cannot_be_used_is_refused(client: BackpressureClient, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Admit(client, **{"subject": "orders"} | wrong)
