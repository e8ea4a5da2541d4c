"""ObserverRequests: the requests of the Observer, one at a time: limited, counted, and with the time of the reply."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec
from msgspec import Struct

from nats_backpressure.adapters.nats.api import NO_STREAM, UNREADABLE
from nats_backpressure.adapters.nats.api_types import ErrorInfo, Reply
from nats_backpressure.adapters.nats.concurrency_limit import ConcurrencyLimit
from nats_backpressure.core.reading.budget import RequestBudget
from nats_backpressure.protocol.subjects import NAME
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.runtime.observations import PROMPT, ConsumerGone, StreamGone, Unavailable
from nats_backpressure.runtime.ports import Clock

CONCURRENT = 8
"""Requests at once, those that already wait longer than HELD apart."""
HELD = 0.25
"""Seconds after which a request no longer counts towards CONCURRENT: it waits for a node that is down, and must not
keep others waiting."""
TIMEOUT = 5.0
"""Seconds for one request; a list takes 4.0 s while a node of the cluster is down."""
NO_CONSUMER = 10014

T = TypeVar("T")
_REPLY = msgspec.json.Decoder(Reply)


class Requester(Protocol):
    """The connection; `request` raises Unavailable if there is no reply for any reason."""

    epoch: int

    @property
    def round_trip(self) -> float:
        """Seconds that the link needs there and back, as far as it is known."""

    def request(self, subject: str, payload: bytes, seconds: float) -> Awaitable[Response]: ...


class Response(Protocol):
    data: bytes


class Answer(Struct, frozen=True):
    """A reply without an error."""

    data: bytes
    took: float
    """Seconds from the request to the reply."""
    trip: float
    """Those of them that the link needed: no time of the server."""
    at: Now
    """When it came: PROMPT after its request at the latest, since this process may have been suspended with it."""


class ObserverRequests:
    """Asks the JetStream API; raises StreamGone, ConsumerGone or Unavailable."""

    def __init__(
        self,
        connection: Requester,
        clock: Clock,
        *,
        count: Callable[[str], None],
        count_request: Callable[[str, str, float], None],
        prefix: str = "$JS.API",
        budget: RequestBudget | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        """`count` gets what was left out or malformed. `budget`: limits the requests per second."""
        self.clock, self.dropped, self._count_request = clock, count, count_request
        self._connection, self._prefix, self._timeout = connection, prefix, timeout
        self._budget, self._limit = budget, ConcurrencyLimit(CONCURRENT, HELD)

    @property
    def epoch(self) -> int:
        return self._connection.epoch

    def check_connection(self, epoch: int) -> None:
        """Raises Unavailable if there is another connection than at the start of the reading."""
        if self._connection.epoch != epoch:
            raise Unavailable("the connection was replaced during the reading")

    def decoded(self, decoder: msgspec.json.Decoder[T], data: bytes) -> T:
        """Raises Unavailable for a malformed reply."""
        try:
            return decoder.decode(data)
        except UNREADABLE as error:
            self.dropped("consumer_info_malformed")
            raise Unavailable(f"a malformed reply: {str(error)[:120]}") from None

    async def ask(self, op: str, payload: bytes, timeout: float = math.inf) -> Answer:
        """The reply. Raises the error in it."""
        timeout = min(timeout, self._timeout)
        if self._budget is not None and (wait := self._budget.take(self.clock.mono())) > 0:
            await self.clock.sleep(wait)
        turn = await self._limit.acquire()
        asked, outcome = self.clock.now(), "unavailable"
        try:
            answer = await self._connection.request(f"{self._prefix}.{op}", payload, timeout)
            outcome = "error"
            # Searched as text first: decoding a page of 256 twice would be half of all our work.
            if b'"error"' in answer.data and (error := self.decoded(_REPLY, answer.data).error):
                raise _exception(error)
            outcome = "ok"
        except (TimeoutError, Unavailable) as cause:
            raise Unavailable(str(cause)[:200] or "no answer in time") from None
        finally:
            self._limit.release(turn)
            at = self.clock.now()
            took = at.mono - asked.mono
            self._count_request(".".join(op.split(".")[:2]), outcome, took)
        late = max(0.0, took - PROMPT)
        trip = min(took, self._connection.round_trip)
        return Answer(answer.data, took, trip, Now(at.mono - late, at.wall - late))


def name_token(name: str) -> str:
    """A name as a token of a subject. Raises Unavailable for others: a wildcard would request something else."""
    if not NAME.fullmatch(name):
        raise Unavailable(f"not a name of a stream or consumer: {name[:80]!r}")
    return name


def _exception(error: ErrorInfo) -> Exception:
    if error.code == 404 and error.err_code == NO_STREAM:
        return StreamGone(error.description[:120])
    if error.code == 404 and error.err_code == NO_CONSUMER:
        return ConsumerGone(error.description[:120])
    return Unavailable(f"{error.code} ({error.err_code}): {error.description[:120]}")
