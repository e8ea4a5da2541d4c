"""States, events and a connection that loses replies, for the tests of what is stored and published."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.event_publisher import JetStreamEventPublisher
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.adapters.nats.state_store import JetStreamStateStore
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.proofs import NO_PROOFS, Proofs
from nats_backpressure.core.subject.record import Record, Writing
from nats_backpressure.core.subject.record_builder import event_id
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import EventType, Status
from nats_backpressure.queries import serialize
from nats_backpressure.runtime.clock import SystemClock
from nats_backpressure.runtime.ports import Unavailable

NAMES = Names()
SUBJECT = "orders.*.created"


class Requests:
    """The connection as these adapters use it."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.lose = 0
        """How many of the next answers to a write are forgotten after it was applied."""
        self.refuse = 0
        """The code with which the next write is refused, unapplied: a cluster's, which one server never gives."""
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        """Done once, just before the next write."""
        self.written: list[tuple[str, bytes, dict[str, str] | None]] = []

    async def request(self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None) -> Msg:
        write = subject.startswith("backpressure.") or "$KV." in subject
        if write:
            self.written.append((subject, payload, headers))
            first, self.meanwhile = self.meanwhile, None
            if first is not None:
                await first()
            code, self.refuse = self.refuse, 0
            if code:
                return Msg(self.nc, data=json.dumps({"error": {"code": 409, "err_code": code}}).encode())
        try:
            reply = await self.nc.request(subject, payload, timeout=2, headers=headers)
        except nats.errors.Error as error:
            raise Unavailable(f"{subject}: {error}") from error
        if self.lose and write:
            self.lose -= 1
            raise Unavailable("the reply was lost")
        return reply


class MinimalView:
    """What `state_value` needs of a ServiceView."""

    settings = Settings()

    def interval(self, subject: str) -> float:
        return 0.1

    def proofs(self, subject: str) -> Proofs:
        return NO_PROOFS


def value(record: Record, nonce: str) -> bytes:
    state = SubjectState(subject=record.subject, policy=Policy(), unread_since=0.0, record=record)
    return serialize.state_value(state, Writing(record, 0, nonce), MinimalView(), Now(1.0, 1.0))  # type: ignore[arg-type]


def event(seq: int, kind: EventType = EventType.ACTIVE, epoch: str = "e", to: Status = Status.ACTIVE) -> SubjectEvent:
    return SubjectEvent(
        id=event_id(SUBJECT, epoch, seq),
        type=kind,
        subject=SUBJECT,
        at=1_800_000_000.0,
        epoch=epoch,
        seq=seq,
        incident="e-1",
        was=Status.INACTIVE,
        now=to,
        reasons=("pending",),
        pressure=1.5,
        reading=None,
        marks=None,
        retry_after=30,
        admit_ratio=0.0,
    )


def publisher_of(requests: Requests, instance: str = "here") -> JetStreamEventPublisher:
    """Publishes events; a second instance acts as another process."""
    return JetStreamEventPublisher(
        JetStreamApi(requests), NAMES, lambda event: serialize.event_message(event, instance)
    )


@asynccontextmanager
async def real(
    nc: Client, prefix: str = "$JS.API"
) -> AsyncIterator[tuple[Requests, JetStreamStateStore, JetStreamEventPublisher]]:
    requests = Requests(nc)
    js = JetStreamApi(requests, prefix)
    await Resources(js, NAMES, 1, 604_800, True).ensure()
    store = JetStreamStateStore(js, NAMES, lambda what: None, lambda: nc, SystemClock())
    yield requests, store, JetStreamEventPublisher(js, NAMES, lambda event: serialize.event_message(event, "here"))


RECORD = Record(SUBJECT, "e", seq=1, status=Status.ACTIVE, announced=Status.ACTIVE, unsent=(event(1),))
