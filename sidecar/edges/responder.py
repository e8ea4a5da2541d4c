"""The NATS micro service: reads a request, has it answered, sends the answer; whatever comes in, it stays up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
import nats.micro
import structlog
from msgspec.structs import replace
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request
from nats.micro.service import Service

from sidecar import __version__
from sidecar.answers import Desk, Refused, validate_policy
from sidecar.core.model import Now
from sidecar.ports import Clock
from sidecar.wire import messages
from sidecar.wire.replies import reply_allowed
from sidecar.wire.requests import (
    AliasRequest,
    BadRequest,
    ConsumerRequest,
    GatewayRequest,
    ListRequest,
    document,
    parse,
)
from sidecar.wire.subjects import BadTail, Names, decode

log = structlog.get_logger()

LARGEST_REQUEST = 64 * 1024
LARGEST_REPLY = 1024 * 1024
MARGIN = 4 * 1024
"""Bytes kept free below the server's max_payload: a reply above it would cost us the connection."""
LONGEST_ERROR = 200
"""Bytes of an error's text."""
ALIAS_WAITING = 1024
"""Alias requests that wait; the ones beyond are dropped by the client and counted."""

Answer = Callable[[str, bytes, str, Now], Any]


class Observed(Protocol):
    """Who is told of each decision, for the metrics."""

    def decision(self, subject: str, role: str, action: str, seconds: float) -> None: ...
    def dropped(self, what: str, n: int = 1) -> None: ...


class Responder:
    def __init__(
        self,
        desk: Desk,
        clock: Clock,
        names: Names,
        observed: Observed,
        reply_prefixes: Sequence[str] = (),
        alias: str | None = None,
        captured: Callable[[str], Sequence[str]] = lambda subject: (),
    ) -> None:
        self._desk, self._clock, self._names, self._observed = desk, clock, names, observed
        self._prefixes, self._alias, self._captured = tuple(reply_prefixes), alias, captured
        self._service: Service | None = None
        self._subscription: Any = None
        self._client: Client | None = None

    def may_reply(self, subject: str) -> bool:
        """Whether we publish there: the guard of the whole answering connection."""
        return reply_allowed(subject, self._prefixes)

    async def serve(self, client: Client) -> None:
        """Answer on this client; it is a new one after every rebuild."""
        self._client = client
        service = await nats.micro.add_service(
            client, name=self._names.name, version=__version__, description="backpressure of JetStream consumers"
        )
        p = self._names.prefix
        for name, subject, answer in (
            ("decide-gateway", f"{p}.decide.gateway.>", self._gateway),
            ("decide-consumer", f"{p}.decide.consumer.>", self._consumer),
            ("status", f"{p}.get.status.>", self._status),
            ("status-list", f"{p}.get.status", self._list),
            ("policy", f"{p}.get.policy.>", self._policy),
            ("validate-policy", f"{p}.validate.policy", self._validate),
        ):
            handler = self._handler(subject.removesuffix(">"), answer)
            await service.add_endpoint(name=name, subject=subject, handler=handler)
        self._service, self._subscription = service, None
        await self.check_alias()

    async def check_alias(self) -> None:
        """Answer the router's own query, unless a stream stores it: that stream's ack would come first."""
        if self._alias is None or self._client is None or not self._client.is_connected:
            return
        captors = self._captured(self._alias)
        if captors and self._subscription is not None:
            await self._subscription.unsubscribe()
            self._subscription = None
        elif not captors and self._subscription is None:
            self._subscription = await self._client.subscribe(
                self._alias, queue="q", cb=self._alias_asked, pending_msgs_limit=ALIAS_WAITING
            )

    async def stop(self, seconds: float) -> None:
        """Take no more requests; what is being answered may end."""
        try:
            async with asyncio.timeout(seconds):
                if self._subscription is not None:
                    await self._subscription.drain()
                if self._service is not None:
                    await self._service.stop()
        except Exception as error:  # the connection may be gone; there is nobody left to tell
            log.debug("service.stop_failed", error=type(error).__name__)

    def _handler(self, prefix: str, answer: Answer) -> Callable[[Request], Awaitable[None]]:
        async def handle(request: Request) -> None:
            reply = request._msg.reply
            if not self.may_reply(reply):
                self._observed.dropped("reply_subject")
                return
            try:
                body = self._answered(request, prefix, reply, answer)
            except Refused as refused:
                await _refuse(request, refused.code, str(refused))
            except (BadRequest, BadTail) as bad:
                await _refuse(request, 400, str(bad))
            except Exception as error:  # no asker gets to see our insides
                self._observed.dropped("request_failed")
                log.error("request.failed", endpoint=prefix, error=type(error).__name__, exc_info=True)
                await _refuse(request, 500, "internal error; the log of the sidecar has it")
            else:
                await request.respond(body)

        return handle

    def _answered(self, request: Request, prefix: str, reply: str, answer: Answer) -> bytes:
        if len(request.data) > LARGEST_REQUEST:
            raise BadRequest(f"a request of {len(request.data)} bytes; at most {LARGEST_REQUEST} are read")
        tail = request.subject.removeprefix(prefix) if prefix.endswith(".") else ""
        subject = decode(tail) if tail else ""
        asker = reply.rpartition(".")[0]
        return self._fitting(answer(subject, request.data, asker, self._clock.now()))

    def _fitting(self, found: Any) -> bytes:
        """The answer, cut at the last whole element where it would be too large."""
        limit = min(self._client.max_payload if self._client else LARGEST_REPLY, LARGEST_REPLY) - MARGIN
        body = msgspec.json.encode(found)
        while len(body) > limit:
            found = _cut(found)
            body = msgspec.json.encode(found)
        return body

    def _gateway(self, subject: str, payload: bytes, asker: str, now: Now) -> messages.Decision:
        return self._decided(self._desk.decide_gateway, subject, parse(payload, GatewayRequest), now)

    def _consumer(self, subject: str, payload: bytes, asker: str, now: Now) -> messages.Decision:
        return self._decided(self._desk.decide_consumer, subject, parse(payload, ConsumerRequest), asker, now)

    def _decided(self, decide: Callable[..., messages.Decision], subject: str, *given: Any) -> messages.Decision:
        began = time.perf_counter()
        found = decide(subject, *given)
        # The watched subject is the label: what a caller makes up must not grow our memory.
        self._observed.decision(found.matched[0], found.role, found.action, time.perf_counter() - began)
        return found

    def _status(self, subject: str, payload: bytes, asker: str, now: Now) -> messages.Status:
        document(payload)
        return self._desk.status(subject, now)

    def _list(self, subject: str, payload: bytes, asker: str, now: Now) -> messages.StatusList:
        return self._desk.status_list(parse(payload, ListRequest), now)

    def _policy(self, subject: str, payload: bytes, asker: str, now: Now) -> dict[str, Any]:
        document(payload)
        return self._desk.policy(subject, now)

    def _validate(self, subject: str, payload: bytes, asker: str, now: Now) -> dict[str, Any]:
        return validate_policy(document(payload))

    async def _alias_asked(self, message: Msg) -> None:
        if not self.may_reply(message.reply):
            self._observed.dropped("reply_subject")
            return
        try:
            if len(message.data) > LARGEST_REQUEST:
                raise BadRequest(f"a request of {len(message.data)} bytes; at most {LARGEST_REQUEST} are read")
            asked = parse(message.data, AliasRequest)
            found: Any = self._desk.alias(asked.subject, self._clock.now())
        except BadRequest as bad:
            found = {"success": False, "error": {"code": "invalid_request", "message": str(bad)[:LONGEST_ERROR]}}
        except Exception as error:  # no asker gets to see our insides
            self._observed.dropped("request_failed")
            log.error("request.failed", endpoint=self._alias, error=type(error).__name__, exc_info=True)
            found = {"success": False, "error": {"code": "internal_error", "message": "internal error"}}
        await message.respond(msgspec.json.encode(found))


async def _refuse(request: Request, code: int, text: str) -> None:
    """A service error: printable, short, and with an empty body."""
    plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    await request.respond_error(str(code), plain[:LONGEST_ERROR])


def _cut(found: Any) -> Any:
    """The same answer with fewer elements, and a word on it."""
    if isinstance(found, messages.StatusList) and found.subjects:
        kept = found.subjects[: len(found.subjects) * 3 // 4]
        return replace(found, subjects=kept, next_offset=found.offset + len(kept))
    if isinstance(found, messages.Status) and found.consumers:
        return replace(found, consumers=found.consumers[: len(found.consumers) // 2])
    if isinstance(found, dict) and found.get("consumers"):
        return {**found, "consumers": found["consumers"][: len(found["consumers"]) // 2], "truncated": True}
    raise Refused(503, "the answer is larger than a message may be")
