"""The endpoints of the service: the name, subject and request of each."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from nats_backpressure.protocol.metrics_windows import MetricsRequest
from nats_backpressure.protocol.requests import (
    ConsumerRequest,
    EventsRequest,
    GatewayRequest,
    HistoryRequest,
    ListRequest,
    NoRequest,
)


class Endpoint(Struct, frozen=True):
    """One endpoint of the NATS micro service."""

    name: str
    subject: str
    """Without the prefix; `>` at the end is the encoded subject that the request is about."""
    request: type[Any]
    """A Struct, or `dict` for any JSON object."""
    reads_stream: bool = False
    """Whether the answer may need the events stream, so that the next request must not wait for it."""


ENDPOINTS = (
    Endpoint("decide-gateway", "decide.gateway.>", GatewayRequest),
    Endpoint("decide-consumer", "decide.consumer.>", ConsumerRequest),
    Endpoint("status", "get.status.>", NoRequest),
    Endpoint("status-list", "get.status", ListRequest),
    Endpoint("policy", "get.policy.>", NoRequest),
    Endpoint("validate-policy", "validate.policy", dict),
    Endpoint("forget", "forget.>", NoRequest),
    Endpoint("events", "get.events.>", EventsRequest, reads_stream=True),
    Endpoint("history", "get.history.>", HistoryRequest, reads_stream=True),
    Endpoint("metrics", "get.metrics.>", MetricsRequest),
    Endpoint("recovery", "get.recovery.>", NoRequest),
    Endpoint("alerts", "get.alerts.>", NoRequest),
    Endpoint("alerts-list", "get.alerts", NoRequest),
)
