"""The public API of the client: what a gateway or a consumer imports. Needs nats-py and msgspec only.

    BackpressureClient    decide() asks the sidecar; watch() follows its states, and admit() then decides without asking
    ThreadedClient        admit() for gateways without an event loop, from any thread
    PullGate              a pull subscription that asks before each pull and pulls no more than the sidecar grants
    BackpressureMiddleware, Route    ASGI: answers 503 with Retry-After while the subject is overloaded

Everything fails open: what cannot be known, asked or read admits the request, is counted, and is logged once.
"""

from nats_backpressure.client.admission import Admission
from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.event_deduplicator import Event
from nats_backpressure.client.middleware import BackpressureMiddleware
from nats_backpressure.client.overloaded import Overloaded
from nats_backpressure.client.pull_gate import PullGate
from nats_backpressure.client.refusal import Refusal
from nats_backpressure.client.requests import Answer
from nats_backpressure.client.routes import Route, Scope
from nats_backpressure.client.stats import Stats
from nats_backpressure.client.threaded_client import ThreadedClient
from nats_backpressure.protocol.messages import Decision, Pull
from nats_backpressure.protocol.values import Priority, Role

__all__ = [
    "Admission",
    "Answer",
    "BackpressureClient",
    "BackpressureMiddleware",
    "Decision",
    "Event",
    "Overloaded",
    "Priority",
    "Pull",
    "PullGate",
    "Refusal",
    "Role",
    "Route",
    "Scope",
    "Stats",
    "ThreadedClient",
]
