"""What a gateway or a consumer imports. Needs nats-py and msgspec; knows the sidecar only by its wire.

    BackpressureClient    decide(): ask the sidecar; watch(), then admit(): follow it, and answer without asking
    PullGate              around a pull subscription: asks before each pull, and pulls what it is told
    BackpressureMiddleware, Route    an ASGI application that says 503 with Retry-After before it drowns

    client      one per connection; everything below belongs to it
    watch       the state bucket, followed: read whole, then live, and whole again after every loss
    picture     what was seen, and the proof that it still holds; admission: what that means for a request now
    asking      questions to the sidecar, and going on without it; events: each once
    values      what is read from the wire; stats: what is counted, and said once

Fail-open throughout: whatever cannot be known, asked or read admits the request, is counted and said once.
"""

from nats_backpressure.client.client import BackpressureClient
from nats_backpressure.client.gate import Admission
from nats_backpressure.client.middleware import BackpressureMiddleware, Route
from nats_backpressure.client.pull_gate import PullGate
from nats_backpressure.client.stats import Stats
from nats_backpressure.client.values import Decision, Pull

__all__ = [
    "Admission",
    "BackpressureClient",
    "BackpressureMiddleware",
    "Decision",
    "Pull",
    "PullGate",
    "Route",
    "Stats",
]
