"""The NATS micro service: reads a request, has it answered, sends the answer; whatever comes in, it stays up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import Any, Protocol

import msgspec
import nats.errors
import nats.micro
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request, ServiceError

from nats_backpressure import __version__
from nats_backpressure.adapters.nats.bounded_client import BoundedServiceClient
from nats_backpressure.adapters.nats.patched_client import settled
from nats_backpressure.protocol import history as past
from nats_backpressure.protocol import messages, windows
from nats_backpressure.protocol.replies import LARGEST_REPLY, fitted, reply_allowed
from nats_backpressure.protocol.requests import (
    AliasRequest,
    BadRequest,
    ConsumerRequest,
    EventsRequest,
    GatewayRequest,
    HistoryRequest,
    ListRequest,
    as_object,
    parse,
)
from nats_backpressure.protocol.subjects import BadTail, Names, decode
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.queries.decisions import DecisionService, RequestRefused, validate_policy
from nats_backpressure.queries.history import HistoryQueries
from nats_backpressure.runtime.ports import Clock

log = structlog.get_logger()

LARGEST_REQUEST = 64 * 1024
LONGEST_ERROR = 200
"""Bytes of an error's text."""
QUEUE = "q"
"""The default queue group of all services: one replica answers."""
INSIDE = "internal error; the log of the sidecar has it"

Answer = Callable[[str, bytes, str, Now], Any]
"""Subject, payload, who asks, and when; what comes back may have to be awaited."""


class Observed(Protocol):
    """Who is told of each decision, for the metrics."""

    def decision(self, subject: str, role: str, action: str, seconds: float, would: str | None) -> None: ...
    def dropped(self, what: str, n: int = 1) -> None: ...


class ServiceEndpoints:
    def __init__(
        self,
        desk: DecisionService,
        past: HistoryQueries,
        clock: Clock,
        names: Names,
        observed: Observed,
        reply_prefixes: Sequence[str] = (),
        alias: str | None = None,
        captured: Callable[[str], Sequence[str]] = lambda subject: (),
    ) -> None:
        self._desk, self._past = desk, past
        self._clock, self._names, self._observed = clock, names, observed
        self._prefixes, self._alias, self._captured = tuple(reply_prefixes), alias, captured
        self._door: BoundedServiceClient | None = None
        self._stopped = False
        self._alias_turn = asyncio.Lock()

    def may_reply(self, subject: str) -> bool:
        """Whether we publish there: the guard of the whole answering connection."""
        return reply_allowed(subject, self._prefixes)

    async def serve(self, client: Client) -> None:
        """Answer on this client, a new one after every rebuild; once it returns, the server knows."""
        if self._stopped:
            return
        p = self._names.prefix
        slow = {f"{p}.get.events.>", f"{p}.get.history.>"}
        self._door = door = BoundedServiceClient(client, self._reply_is_inbox, slow)
        service = await nats.micro.add_service(
            door,  # type: ignore[arg-type]  # all that the framework uses of a client
            name=self._names.name,
            version=__version__,
            description="backpressure of JetStream consumers",
        )
        for name, subject, answer in (
            ("decide-gateway", f"{p}.decide.gateway.>", self._gateway),
            ("decide-consumer", f"{p}.decide.consumer.>", self._consumer),
            ("status", f"{p}.get.status.>", self._status),
            ("status-list", f"{p}.get.status", self._list),
            ("policy", f"{p}.get.policy.>", self._policy),
            ("validate-policy", f"{p}.validate.policy", self._validate),
            ("events", f"{p}.get.events.>", self._events),
            ("history", f"{p}.get.history.>", self._history),
            ("metrics", f"{p}.get.metrics.>", self._metrics),
            ("recovery", f"{p}.get.recovery.>", self._recovery),
            ("alerts", f"{p}.get.alerts.>", self._alerts),
            ("alerts-list", f"{p}.get.alerts", self._alerts_list),
        ):
            await service.add_endpoint(name=name, subject=subject, handler=self._handler(subject, answer))
        await self.check_alias()
        await settled(client)

    async def check_alias(self) -> None:
        """Answer the router's own query, unless a stream stores it: that stream's ack would come first."""
        async with self._alias_turn:
            door = self._door
            if self._alias is None or door is None or self._stopped or not door.client.is_connected:
                return
            captured = bool(self._captured(self._alias))
            try:
                if captured and door.alias is not None:
                    await door.alias.unsubscribe()
                    door.alias = None
                elif not captured and door.alias is None:
                    door.alias = await door.subscribe(self._alias, QUEUE, self._alias_asked)
            except nats.errors.Error as error:  # the client is on its way out; the next one starts afresh
                log.debug("alias.unchanged", error=type(error).__name__)

    async def stop(self, seconds: float) -> None:
        """Take no more requests; what has arrived is answered, for so long at most."""
        self._stopped = True
        if self._door is not None:
            await self._door.close(seconds)

    def _reply_is_inbox(self, message: Msg) -> bool:
        if self.may_reply(message.reply or ""):
            return True
        self._observed.dropped("reply_subject")
        return False

    def _handler(self, subject: str, answer: Answer) -> Callable[[Request], Awaitable[None]]:
        """One endpoint. A ServiceError is sent and counted by the framework; any other would be sent as its repr."""

        async def handle(request: Request) -> None:
            try:
                found = self._found(request, subject, answer)
                await request.respond(self._fitted(await found if isawaitable(found) else found))
            except RequestRefused as refused:
                raise ServiceError(str(refused.code), _plain(str(refused))) from None
            except (BadRequest, BadTail) as bad:
                raise ServiceError("400", _plain(str(bad))) from None
            except Exception as error:  # no asker gets to see our insides
                self._failed(subject, error)
                raise ServiceError("500", INSIDE) from None

        return handle

    def _found(self, request: Request, subject: str, answer: Answer) -> Any:
        """In the order of the contract: size, tail, payload, and only then whether it is watched."""
        _check_size(request.data)
        tail = decode(request.subject.removeprefix(subject[:-1])) if subject.endswith(">") else ""
        asker = request._msg.reply.rpartition(".")[0]
        return answer(tail, request.data, asker, self._clock.now())

    def _fitted(self, found: Any) -> bytes:
        body = fitted(found, self._door.client.max_payload if self._door else LARGEST_REPLY)
        if body is None:
            raise RequestRefused(503, "the answer is larger than a message may be")
        return body

    def _failed(self, subject: str, error: Exception) -> None:
        self._observed.dropped("request_failed")
        log.error("request.failed", endpoint=subject, error=type(error).__name__, exc_info=error)

    def _gateway(self, subject: str, payload: bytes, asker: str, now: Now) -> messages.Decision:
        return self._decided(self._desk.decide_gateway, subject, now, parse(payload, GatewayRequest))

    def _consumer(self, subject: str, payload: bytes, asker: str, now: Now) -> messages.Decision:
        return self._decided(self._desk.decide_consumer, subject, now, parse(payload, ConsumerRequest), asker)

    def _decided(
        self, decide: Callable[..., messages.Decision], subject: str, now: Now, *given: Any
    ) -> messages.Decision:
        began = time.perf_counter()
        found = decide(subject, *given, now)
        took = time.perf_counter() - began
        # The label is a watched subject, itself or the one that decides: what a caller makes up must not fill memory.
        own = subject in found.matched[:1] or len(found.matched) == 1
        label = found.matched[0] if own else self._desk.shown(subject, now).state.subject
        self._observed.decision(label, found.role, found.action, took, found.would)
        return found

    def _status(self, subject: str, payload: bytes, asker: str, now: Now) -> messages.Status:
        as_object(payload)
        return self._desk.status(subject, now)

    def _list(self, subject: str, payload: bytes, asker: str, now: Now) -> messages.StatusList:
        return self._desk.status_list(parse(payload, ListRequest), now)

    def _policy(self, subject: str, payload: bytes, asker: str, now: Now) -> dict[str, Any]:
        as_object(payload)
        return self._desk.policy(subject, now)

    def _validate(self, subject: str, payload: bytes, asker: str, now: Now) -> dict[str, Any]:
        return validate_policy(as_object(payload))

    def _events(self, subject: str, payload: bytes, asker: str, now: Now) -> Awaitable[past.Events]:
        return self._past.events(subject, parse(payload, EventsRequest), now)

    def _history(self, subject: str, payload: bytes, asker: str, now: Now) -> Awaitable[past.Transitions]:
        return self._past.history(subject, parse(payload, HistoryRequest), now)

    def _metrics(self, subject: str, payload: bytes, asker: str, now: Now) -> windows.Windows:
        return self._past.metrics(subject, parse(payload, windows.MetricsRequest), now)

    def _recovery(self, subject: str, payload: bytes, asker: str, now: Now) -> past.Recovered:
        as_object(payload)
        return self._past.recovery(subject, now)

    def _alerts(self, subject: str, payload: bytes, asker: str, now: Now) -> past.Alerts:
        as_object(payload)
        return self._past.alerts(subject, now)

    def _alerts_list(self, subject: str, payload: bytes, asker: str, now: Now) -> past.Alerts:
        as_object(payload)
        return self._past.alerts_list(now)

    async def _alias_asked(self, message: Msg) -> None:
        try:
            _check_size(message.data)
            asked = parse(message.data, AliasRequest)
            found: Any = self._desk.alias(asked.subject, self._clock.now())
        except BadRequest as bad:
            found = _alias_error("invalid_request", _plain(str(bad)))
        except Exception as error:  # no asker gets to see our insides
            self._failed(str(self._alias), error)
            found = _alias_error("internal_error", INSIDE)
        await message.respond(msgspec.json.encode(found))


def _check_size(payload: bytes) -> None:
    if len(payload) > LARGEST_REQUEST:
        raise BadRequest(f"a request of {len(payload)} bytes; at most {LARGEST_REQUEST} are read")


def _plain(text: str) -> str:
    """Printable and short, as a header's value must be."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:LONGEST_ERROR])


def _alias_error(code: str, text: str) -> dict[str, Any]:
    return {"success": False, "error": {"code": code, "message": text}}
