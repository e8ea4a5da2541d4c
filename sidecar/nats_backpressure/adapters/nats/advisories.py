"""Reads the server's advisories and ack metrics and passes them on as hints: some are lost, any may be forged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.api import UNREADABLE
from nats_backpressure.adapters.nats.hint_subscriptions import (
    CONSUMER,
    LIMIT_REACHED,
    METRIC,
    STREAM,
    HintSubscriptions,
)
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import (
    AckSeen,
    ApiLimited,
    ConsumerChanged,
    Hint,
    MaxDeliveries,
    Nak,
    StreamChanged,
    Terminated,
)
from nats_backpressure.runtime.ports import Clock

SIZE_LIMIT = 16 * 1024
"""Bytes of an advisory; larger ones are not read."""

Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class _Advisory(Struct):
    type: str
    stream: str = ""
    consumer: str = ""


class _Ack(_Advisory):
    ack_time: Annotated[int, Meta(ge=0, le=2**63 - 1)] = -1
    """Nanoseconds from delivery to ack."""
    deliveries: Positive = 1


_ADVISORY = msgspec.json.Decoder(_Advisory)
_ACK = msgspec.json.Decoder(_Ack)
_TYPES = {
    "MAX_DELIVERIES": "max_deliver",
    "MSG_NAKED": "nak",
    "MSG_TERMINATED": "terminated",
    "CREATED": "consumer_action",
    "DELETED": "consumer_action",
}


class MalformedAdvisory(ValueError):
    """Not an advisory that the server sends."""


class AdvisoryListener:
    """Passes every hint to `sink`, which must be quick and must not raise; `count` counts the messages that are not.
    `counts`: whether the ack metrics and advisories of a stream's consumers count; the rest is not read."""

    def __init__(
        self,
        clock: Clock,
        sink: Callable[[Hint], None],
        count: Callable[[str], None],
        counts: Callable[[str], bool] = lambda stream: True,
    ) -> None:
        self._clock, self._sink, self._count = clock, sink, count
        self.subscriptions = HintSubscriptions(self._receive, counts)

    async def listen(self, client: Client) -> None:
        """Subscribe on a new client."""
        await self.subscriptions.listen(client)

    async def _receive(self, message: Msg) -> None:
        # No await here: a callback that waits can be cancelled, and its subscription would end silently.
        hint = self.read(message.subject, message.data)
        if hint is None:
            self._count("advisory_malformed")
        else:
            self._sink(hint)

    def read(self, subject: str, data: bytes) -> Hint | None:
        """The hint in an advisory; None for anything else that a client may publish there."""
        try:
            if len(data) > SIZE_LIMIT:
                raise MalformedAdvisory("too large")
            if subject == LIMIT_REACHED:
                _check_type(_ADVISORY.decode(data), "advisory.v1.api_limit_reached")
                return ApiLimited()
            prefix, _, rest = subject.partition(".CONSUMER.ACK.")
            if f"{prefix}.CONSUMER.ACK" == METRIC and rest:
                return self._ack(rest.split("."), _ACK.decode(data))
            advisory = _ADVISORY.decode(data)
            if subject.startswith(f"{CONSUMER}."):
                return _consumer_hint(subject.removeprefix(f"{CONSUMER}.").split("."), advisory)
            return _stream_hint(subject.removeprefix(f"{STREAM}.").split("."), advisory)
        except UNREADABLE:
            return None

    def _ack(self, names: list[str], ack: _Ack) -> AckSeen:
        _check_type(ack, "metric.v1.consumer_ack")
        if ack.ack_time < 0:
            raise MalformedAdvisory("no ack_time")
        return AckSeen(_key(names, ack), ack.ack_time / 1e9, ack.deliveries, self._clock.now())


def _consumer_hint(tokens: list[str], advisory: _Advisory) -> Hint:
    kind, *names = tokens
    _check_type(advisory, f"advisory.v1.{_TYPES.get(kind, '?')}")
    key = _key(names, advisory)
    match kind:
        case "MAX_DELIVERIES":
            return MaxDeliveries(key)
        case "MSG_NAKED":
            return Nak(key)
        case "MSG_TERMINATED":
            return Terminated(key)
        case _:
            return ConsumerChanged(key, kind.lower())


def _stream_hint(tokens: list[str], advisory: _Advisory) -> Hint:
    _check_type(advisory, "advisory.v1.stream_action")
    if len(tokens) != 2 or tokens[0] not in ("CREATED", "UPDATED", "DELETED") or tokens[1] != advisory.stream:
        raise MalformedAdvisory("subject and payload name different things")
    return StreamChanged(advisory.stream, tokens[0].lower())


def _check_type(advisory: _Advisory, kind: str) -> None:
    if advisory.type != f"io.nats.jetstream.{kind}":
        raise MalformedAdvisory("an advisory of another type")


def _key(names: list[str], advisory: _Advisory) -> ConsumerKey:
    """The consumer, if subject and payload name the same: permissions to publish are by subject."""
    if names != [advisory.stream, advisory.consumer]:
        raise MalformedAdvisory("subject and payload name different things")
    return ConsumerKey(advisory.stream, advisory.consumer)
