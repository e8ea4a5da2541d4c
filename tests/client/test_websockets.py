"""What a WebSocket client sees of a refusal by the middleware and by the FastAPI dependency, on a real uvicorn."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from fastapi import Depends, FastAPI, WebSocket

from nats_backpressure.client import BackpressureClient, BackpressureMiddleware
from nats_backpressure.client.integrations.fastapi import Admit
from nats_backpressure.protocol.values import ActionName
from tests.support.serving import serving


def gateway(client: BackpressureClient | None, kind: str) -> FastAPI:
    app = FastAPI()

    @app.websocket("/orders/{tenant}", dependencies=[Depends(Admit(client, "orders"))] if kind == "Admit" else [])
    async def orders(websocket: WebSocket) -> None:
        await websocket.accept("v1" if websocket.scope["subprotocols"] else None)
        await websocket.send_text("welcome")
        await websocket.close()

    if kind == "middleware":
        app.add_middleware(BackpressureMiddleware, client=client, routes={"/orders/{tenant}": "orders"})
    return app


@pytest.mark.parametrize("kind", ["middleware", "Admit"])
@pytest.mark.parametrize("protocols", [(), ("v1", "v2")])
@pytest.mark.parametrize("action", ["reject", "continue", None])
async def test_it_is_accepted_and_closed_with_try_again_later_only_while_overloaded(
    kind: str, protocols: tuple[str, ...], action: ActionName | None
) -> None:
    client = None if action is None else BackpressureClient.fixed(action, retry_after_seconds=7)
    async with (
        serving(gateway(client, kind)) as url,
        aiohttp.ClientSession() as session,
        session.ws_connect(
            f"{url}/orders/acme", protocols=protocols, timeout=aiohttp.ClientWSTimeout(10, 10)
        ) as socket,
    ):
        first: Any = await socket.receive(10)
    assert socket.protocol == (protocols[0] if protocols else None)
    if action == "reject":
        assert (first.type, socket.close_code) == (aiohttp.WSMsgType.CLOSE, 1013)
        assert 7 <= int(first.extra.removeprefix("retry after ").removesuffix(" s")) <= 11
    else:
        assert first.data == "welcome"
