"""BackpressureMiddleware (ASGI): answers 503 with Retry-After while a route's subject is overloaded.

Plain ASGI, for Starlette, FastAPI and any other framework; it imports none of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from nats_backpressure.client.admission import Admission
from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.refusal import Refusal, checked_status_code
from nats_backpressure.client.routes import Match, Route, Routes, Scope, own_root_path, route_path
from nats_backpressure.client.stats import OFF, log
from nats_backpressure.client.template_admission import admit_template

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OnShed = Callable[[Scope, Refusal], App | Awaitable[App]]

EXEMPT = ("/health", "/healthz", "/livez", "/ready", "/readyz", "/metrics")
"""Routes that are never shed: health checks and metrics of the gateway itself."""


class BackpressureMiddleware:
    """`app.add_middleware(BackpressureMiddleware, client=client, routes={"/decide": "beamline.router.v1.decide"})`.

    The first route that matches decides. The client must `watch` the subjects, in the application's lifespan. A CORS
    preflight is never shed, and a WebSocket is accepted and closed with 1013 (try again later).
    """

    def __init__(
        self,
        app: App,
        client: BackpressureClient | None,
        routes: Mapping[str, str] | Iterable[Route],
        *,
        exempt: Iterable[str] = EXEMPT,
        status_code: int = 503,
        on_shed: OnShed | None = None,
    ) -> None:
        """`client=None` turns it off. `on_shed`, a function or a coroutine function, returns the ASGI application that
        answers in place of the problem, for example a Starlette response; `Retry-After` is added to it. Raises
        ValueError for a route that never matches."""
        self._app, self._client, self._on_shed = app, client, on_shed
        self._status_code = checked_status_code(status_code)
        self._root_path = own_root_path(app)
        self._routes = Routes(
            [Route(*pair) for pair in routes.items()] if isinstance(routes, Mapping) else routes, exempt
        )
        if client is None:
            log.info(OFF)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._client is not None and scope["type"] in ("http", "websocket"):
            admission = self._admission(self._client, scope)
            if admission is not None and not admission:
                await self._refuse(Refusal.of(admission, self._status_code), scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admission(self, client: BackpressureClient, scope: Scope) -> Admission | None:
        """None for a request that is not asked about: it is admitted."""
        if self._root_path:  # the application sets it too late for us, and whatever it was
            scope = {**scope, "root_path": self._root_path}
        path, method = route_path(scope), str(scope.get("method", "GET"))  # a WebSocket begins with a GET
        if self._routes.is_exempt(path) or _is_preflight(scope, method):
            client.stats.count("exempt")
            return None
        if (match := self._routes.match(path, method)) is None:
            client.stats.count("unknown_route")
            client.logger.info("unknown_route", path[:200], f"no route for {method[:20]} {path[:200]!r}: admitted")
            return None
        return _admit(client, match, scope)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await _close_websocket(refusal, scope, receive, send)
            return
        if self._on_shed is not None:
            answer = await self._own_answer(self._on_shed, scope, refusal)
            if answer is not None:
                await answer(scope, receive, _with_headers(refusal, send))
                return
        headers = {"content-type": refusal.content_type, "content-length": str(len(refusal.body))}
        await send(_start(refusal.status_code, headers | refusal.headers))
        await send({"type": "http.response.body", "body": refusal.body})

    async def _own_answer(self, on_shed: OnShed, scope: Scope, refusal: Refusal) -> App | None:
        try:
            answer = on_shed(scope, refusal)
            if inspect.isawaitable(answer):
                answer = await answer
            if not callable(answer):
                raise TypeError(f"on_shed returned {type(answer).__name__}, which is no ASGI application")
        except Exception as error:  # a bug of the gateway's own function: the plain answer is right too
            if self._client is not None:
                text = f"on_shed raised {type(error).__name__}: answered with the problem in its place"
                self._client.logger.warn("on_shed", type(error).__name__, text, exc_info=True)
            return None
        return answer


def _admit(client: BackpressureClient, match: Match, scope: Scope) -> Admission | None:
    route = match.route
    scope = {**scope, "path_params": {**scope.get("path_params", {}), **match.parameters}}
    try:
        priority = route.priority_of(scope)
        if isinstance(route.subject, str):
            return admit_template(client, route.subject, match.parameters, priority, route.path)
        return client.admit(route.subject(scope), priority)
    except Exception:  # the gateway's own function: backpressure must not turn its bug into an outage
        client.stats.count("route_error")
        client.logger.warn("route_error", route.path, f"route {route.path} raised: admitted", exc_info=True)
        return None


def _is_preflight(scope: Scope, method: str) -> bool:
    """Whether a browser asks for leave to send the request itself: without an answer it cannot see that one's."""
    return method == "OPTIONS" and any(name == b"access-control-request-method" for name, _ in scope["headers"])


async def _close_websocket(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Accept and close: a browser can see neither the status nor the headers of a handshake that is refused."""
    await receive()
    subprotocols = scope.get("subprotocols") or [None]  # without the one asked for a browser sees no code either
    await send({"type": "websocket.accept", "subprotocol": subprotocols[0], "headers": []})
    await send({"type": "websocket.close", "code": refusal.close_code, "reason": refusal.close_reason})


def _with_headers(refusal: Refusal, send: Send) -> Send:
    """`send`, with the headers of the refusal that the answer does not have."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            present = {name.lower() for name, _ in headers}
            missing = {name: value for name, value in refusal.headers.items() if name.encode() not in present}
            message = {**message, "headers": [*headers, *_encoded(missing)]}
        await send(message)

    return send_with_headers


def _start(status: int, headers: Mapping[str, str]) -> Message:
    return {"type": "http.response.start", "status": status, "headers": _encoded(headers)}


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
