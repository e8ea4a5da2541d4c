"""BackpressureMiddleware (ASGI): answers 503 with Retry-After while a route's subject is overloaded.

Plain ASGI, for Starlette, FastAPI and any other framework; it imports none of them.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from nats_backpressure.client.admission import Admission
from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.shedder import NORMAL

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

EXEMPT = ("/health", "/healthz", "/livez", "/ready", "/readyz", "/metrics")
"""Routes that are never shed: health checks and metrics of the gateway itself."""
JITTER = 0.5
"""Retry-After is spread over up to this share more, never less: refused callers must not all return at once."""
MAX_RETRY_AFTER = 86_400
TITLES = {503: "Service Unavailable", 429: "Too Many Requests"}
CODE = "service_overloaded"
_PLACEHOLDER = re.compile(r"\\\{\w+(:path)?\\\}")


@dataclass(frozen=True)
class Route:
    """Which requests belong to which subject: `{name}` in the path matches one segment, `{name:path}` the rest.

    `subject` and `priority` may be functions of the ASGI scope, for example for a tenant in a header; believe a
    priority that a caller sends only as far as you trust the caller.
    """

    path: str
    subject: str | Callable[[Scope], str | None]
    methods: Sequence[str] = ()
    """Empty: all."""
    priority: str | Callable[[Scope], str] = NORMAL


class BackpressureMiddleware:
    """`app.add_middleware(BackpressureMiddleware, client=client, routes={"/decide": "beamline.router.v1.decide"})`.

    The first route that matches decides. The client must `watch` the subjects, in the application's lifespan.
    """

    def __init__(
        self,
        app: App,
        client: BackpressureClient,
        routes: Mapping[str, str] | Iterable[Route],
        *,
        exempt: Iterable[str] = EXEMPT,
        status_code: int = 503,
    ) -> None:
        if status_code not in TITLES:
            raise ValueError(f"status_code must be 503 or 429, not {status_code}")
        all_routes = [Route(*pair) for pair in routes.items()] if isinstance(routes, Mapping) else list(routes)
        self._app, self._client, self._status_code = app, client, status_code
        self._routes = [
            (_pattern(route.path), frozenset(m.upper() for m in route.methods), route) for route in all_routes
        ]
        self._exempt = [_pattern(path) for path in exempt]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await self._refuse(refusal, send)

    def _refusal(self, scope: Scope) -> Admission | None:
        """None if this request is admitted."""
        stats, path = self._client.stats, str(scope.get("path", ""))
        if any(pattern.fullmatch(path) for pattern in self._exempt):
            stats.count("exempt")
            return None
        if (route := self._route(path, str(scope.get("method", "")))) is None:
            stats.count("unknown_route")
            self._client.logger.warn("unknown_route", "", f"no route for {path[:200]!r}: admitted")
            return None
        try:
            subject = route.subject if isinstance(route.subject, str) else route.subject(scope)
            priority = route.priority if isinstance(route.priority, str) else route.priority(scope)
            admission = self._client.admit(subject, priority)
        except Exception as error:  # the gateway's own function: backpressure must not turn its bug into an outage
            stats.count("route_error")
            self._client.logger.warn("route_error", route.path, f"route {route.path} raised {error!r}: admitted")
            return None
        return None if admission.admitted else admission

    def _route(self, path: str, method: str) -> Route | None:
        for pattern, methods, route in self._routes:
            if pattern.fullmatch(path) and (not methods or method in methods):
                return route
        return None

    async def _refuse(self, refusal: Admission, send: Send) -> None:
        """Answer with a problem (RFC 9457). It names no subject: subjects are internal."""
        retry_after = jittered(refusal.retry_after_seconds)
        problem = {
            "type": "about:blank",
            "title": TITLES[self._status_code],
            "status": self._status_code,
            "detail": f"The service is overloaded; try again in {retry_after} s.",
            "code": CODE,
            "retry_after_seconds": retry_after,
        }
        body = msgspec.json.encode(problem)
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(retry_after).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": self._status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def jittered(seconds: float) -> int:
    """Whole seconds, at least 1: from `seconds` up to half as much more."""
    least = max(1, math.ceil(min(seconds, MAX_RETRY_AFTER)))
    return random.randint(least, max(least + 1, math.floor(least * (1 + JITTER))))


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(_PLACEHOLDER.sub(lambda match: ".+" if match[1] else "[^/]+", re.escape(path)))
