"""The NATS micro service: reads a request, passes it to the query that answers it, and sends the reply or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import isawaitable
from types import MappingProxyType
from typing import Any, Protocol

import msgspec
import nats.errors
import nats.micro
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request, ServiceError
from nats.micro.service import EndpointStats

from nats_backpressure import __version__
from nats_backpressure.adapters.nats.bounded_client import BoundedServiceClient
from nats_backpressure.adapters.nats.direct_replies import Answer
from nats_backpressure.adapters.nats.patched_client import settled
from nats_backpressure.adapters.nats.reply_guard import ReplyGuard
from nats_backpressure.protocol.endpoints import ENDPOINTS, Endpoint
from nats_backpressure.protocol.reply_limits import LARGEST_REPLY, fitted, reply_limit
from nats_backpressure.protocol.requests import AliasRequest, BadRequest, RequestRefused, parse
from nats_backpressure.protocol.status_alias import AliasError, AliasReply
from nats_backpressure.protocol.subjects import BadTail, Names, decode
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.ports import Clock

log = structlog.get_logger()

LARGEST_REQUEST = 64 * 1024
LONGEST_ERROR = 200
"""Bytes of an error's text."""
QUEUE = "q"
"""The default queue group of all services: one replica answers."""
INTERNAL_ERROR = "internal error; see the log of the sidecar"


class DirectAnswers(Protocol):
    """Answers requests of one endpoint at once; it may raise, or return None for a request that takes longer."""

    largest: int
    """Bytes of its replies at most."""
    answered: int
    seconds: float
    """Spent on those that were answered."""

    def __call__(self, subject: bytes, payload: bytes, requester: str) -> bytes | None: ...


class ServiceEndpoints:
    """Serves every endpoint on the connection for requests. No request ends it."""

    def __init__(
        self,
        answers: Mapping[str, Callable[[str, Any, str, Now], Any]],
        alias_answer: Callable[[str, Now], Any],
        clock: Clock,
        names: Names,
        count: Callable[[str], None],
        reply_prefixes: Sequence[str] = (),
        alias: str | None = None,
        captured: Callable[[str], Sequence[str]] = lambda subject: (),
        direct: Mapping[str, DirectAnswers] = MappingProxyType({}),
    ) -> None:
        """`answers` has a function for each endpoint, by name: it takes the subject, the request, who asks and when,
        and returns the reply or an awaitable of it. `direct` has those that answer the same at once. `captured`
        returns the streams that store a subject."""
        self._answers, self._alias_answer = answers, alias_answer
        self._clock, self._names, self._count = clock, names, count
        self._guard, self._alias, self._captured = ReplyGuard(reply_prefixes), alias, captured
        self._direct = direct
        self._client: BoundedServiceClient | None = None
        self._stopped = False
        self._alias_turn = asyncio.Lock()

    def may_reply(self, subject: str) -> bool:
        """Whether this service publishes to a subject; the connection for requests asks it for every publish."""
        return self._guard.allows(subject)

    async def serve(self, client: Client) -> None:
        """Answer on a new client; returns once the server has all subscriptions."""
        if self._stopped:
            return
        p = self._names.prefix
        slow = {f"{p}.{endpoint.subject}" for endpoint in ENDPOINTS if endpoint.reads_stream}
        direct = {
            f"{p}.{endpoint.subject}": self._direct_answer(self._direct[endpoint.name])
            for endpoint in ENDPOINTS
            if endpoint.name in self._direct and self._direct[endpoint.name].largest <= reply_limit(client.max_payload)
        }
        self._client = bounded = BoundedServiceClient(client, self._reply_is_inbox, slow, direct)
        service = await nats.micro.add_service(
            bounded,  # type: ignore[arg-type]  # it has everything that the framework uses of a client
            name=self._names.name,
            version=__version__,
            description="backpressure of JetStream consumers",
            stats_handler=self._stats_handler(),
        )
        for endpoint in ENDPOINTS:
            await service.add_endpoint(
                name=endpoint.name, subject=f"{p}.{endpoint.subject}", handler=self._handler(endpoint)
            )
        await self.check_alias()
        await settled(client)

    async def check_alias(self) -> None:
        """Answer the router's own query, unless a stream stores it: the ack of that stream would come first."""
        async with self._alias_turn:
            client = self._client
            if self._alias is None or client is None or self._stopped or not client.client.is_connected:
                return
            captured = bool(self._captured(self._alias))
            try:
                if captured and client.alias is not None:
                    await client.alias.unsubscribe()
                    client.alias = None
                elif not captured and client.alias is None:
                    client.alias = await client.subscribe(self._alias, QUEUE, self._answer_alias)
            except nats.errors.Error as error:  # the client is closing; `serve` comes here again with the next one
                log.debug("alias.unchanged", error=type(error).__name__)

    async def stop(self, seconds: float) -> None:
        """Take no more requests, and answer those that have arrived, within `seconds`."""
        self._stopped = True
        if self._client is not None:
            await self._client.close(seconds)

    def _reply_is_inbox(self, message: Msg) -> bool:
        if self.may_reply(message.reply or ""):
            return True
        self._count("reply_subject")
        return False

    def _direct_answer(self, answer: DirectAnswers) -> Answer:
        """Checked as in `_answer`. What fails here is left to the ordinary way, which returns and counts the error."""
        guard = self._guard

        def reply(subject: bytes, inbox: bytes, payload: bytes) -> bytes | None:
            requester = guard.requester(inbox)
            if requester is None or len(payload) > LARGEST_REQUEST:
                return None
            try:
                return answer(subject, payload, requester)
            except Exception:
                return None

        return reply

    def _stats_handler(self) -> Callable[[EndpointStats], None]:
        """Adds the direct answers since now to the framework's own figures: it counts only what it handles."""
        before = {name: (answers.answered, answers.seconds) for name, answers in self._direct.items()}

        def add(stats: EndpointStats) -> None:
            if stats.name in before:
                answers, (answered, seconds) = self._direct[stats.name], before[stats.name]
                stats.num_requests += answers.answered - answered
                stats.processing_time += round(1e9 * (answers.seconds - seconds))
                stats.average_processing_time = stats.processing_time // max(1, stats.num_requests)

        return add

    def _handler(self, endpoint: Endpoint) -> Callable[[Request], Awaitable[None]]:
        """The framework sends and counts a ServiceError; it would send the repr of any other exception."""

        async def handle(request: Request) -> None:
            try:
                reply = self._answer(request, endpoint)
                body = self._encoded(await reply if isawaitable(reply) else reply)
            except RequestRefused as refused:
                raise ServiceError(str(refused.code), _printable(str(refused))) from None
            except (BadRequest, BadTail) as bad:
                raise ServiceError("400", _printable(str(bad))) from None
            except Exception as error:  # a caller gets no details of it
                self._failed(f"{self._names.prefix}.{endpoint.subject}", error)
                raise ServiceError("500", INTERNAL_ERROR) from None
            try:
                await request.respond(body)
            except nats.errors.Error as error:  # the connection is gone, and the asker asks another replica
                log.debug("responder.unanswered", error=type(error).__name__)

        return handle

    def _answer(self, request: Request, endpoint: Endpoint) -> Any:
        """Checked in the order of the contract: size, tail, payload, and then whether the subject is watched."""
        _check_size(request.data)
        prefix = f"{self._names.prefix}.{endpoint.subject}".removesuffix(">")
        subject = decode(request.subject.removeprefix(prefix)) if endpoint.subject.endswith(">") else ""
        requester = request._msg.reply.rpartition(".")[0]
        now = self._clock.now()
        return self._answers[endpoint.name](subject, parse(request.data, endpoint.request), requester, now)

    def _encoded(self, reply: Any) -> bytes:
        body = fitted(reply, self._client.client.max_payload if self._client else LARGEST_REPLY)
        if body is None:
            raise RequestRefused(503, "the answer is larger than a message may be")
        return body

    def _failed(self, subject: str, error: Exception) -> None:
        self._count("request_failed")
        log.error("request.failed", endpoint=subject, error=type(error).__name__, exc_info=error)

    async def _answer_alias(self, message: Msg) -> None:
        try:
            _check_size(message.data)
            reply = self._alias_answer(parse(message.data, AliasRequest).subject, self._clock.now())
        except BadRequest as bad:
            reply = _alias_error("invalid_request", _printable(str(bad)))
        except Exception as error:  # a caller gets no details of it
            self._failed(str(self._alias), error)
            reply = _alias_error("internal_error", INTERNAL_ERROR)
        await message.respond(msgspec.json.encode(reply))


def _check_size(payload: bytes) -> None:
    if len(payload) > LARGEST_REQUEST:
        raise BadRequest(f"a request of {len(payload)} bytes; at most {LARGEST_REQUEST} are read")


def _printable(text: str) -> str:
    """Short and printable ASCII, as the value of a header must be."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:LONGEST_ERROR])


def _alias_error(code: str, text: str) -> AliasReply:
    return AliasReply(False, error=AliasError(code, text))
