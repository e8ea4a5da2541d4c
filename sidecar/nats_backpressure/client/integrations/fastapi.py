"""Admit: a FastAPI dependency that refuses a request while the subject is overloaded. Needs FastAPI.

Without `from __future__ import annotations`: FastAPI reads the annotations of the call.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from nats_backpressure.client.admission import Admission
from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.refusal import Refusal, checked_status_code
from nats_backpressure.client.routes import checked_priority
from nats_backpressure.client.shedder import NORMAL
from nats_backpressure.client.stats import OFF, OnceLogger
from nats_backpressure.client.subject_template import template_names
from nats_backpressure.client.template_admission import admit_template
from nats_backpressure.protocol.values import Priority

_said = OnceLogger()
"""For all routes of a process: each has an `Admit` of its own."""


class Admit:
    """`@app.post("/tenants/{tenant}/orders", dependencies=[Depends(Admit(client, "orders.{tenant}.created"))])`.

    `{name}` stands for the path parameter of that name. One that the path does not have is logged with the first
    request: FastAPI does not tell a dependency its path before. Use it in place of the middleware, or each request
    counts twice; the middleware refuses earlier, before the body is read.
    """

    def __init__(
        self, client: BackpressureClient | None, subject: str, *, priority: Priority = NORMAL, status_code: int = 503
    ) -> None:
        """`client=None` turns it off, which is logged once. Raises ValueError for a subject, priority or status code
        that cannot be used."""
        self._client, self._status_code = client, checked_status_code(status_code)
        self._subject, self._priority = subject, checked_priority(priority)
        template_names(subject)
        if client is None:
            _said.info("off", "", OFF)

    async def __call__(self, connection: HTTPConnection) -> Admission | None:
        """What was decided, for a handler that wants to know; if it is a refusal, raises HTTPException with the
        middleware's problem as its `detail`. A WebSocket is accepted and closed with 1013 (try again later)."""
        if self._client is None:
            return None
        parameters: Mapping[str, Any] = connection.path_params
        route = str(getattr(connection.scope.get("route"), "path", self._subject))
        admission = admit_template(self._client, self._subject, parameters, self._priority, route)
        if not admission:
            refusal = Refusal.of(admission, self._status_code)
            if isinstance(connection, WebSocket):
                # As the middleware: a browser sees nothing of a handshake that is refused.
                await connection.accept(next(iter(connection.scope.get("subprotocols") or ()), None))
                raise WebSocketException(refusal.close_code, refusal.close_reason)
            raise HTTPException(refusal.status_code, refusal.problem, refusal.headers)
        return admission
