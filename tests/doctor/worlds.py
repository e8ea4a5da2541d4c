"""An installation in which nothing is wrong, as facts, and its parts."""

from __future__ import annotations

from nats_backpressure.config.settings import Settings
from nats_backpressure.doctor.facts import Account, Consumer, Facts, OwnStream, Right, Server, subjects_of
from nats_backpressure.protocol.values import ConsumerKey

NOW = 1_800_000_000.0
CONSUMERS = tuple(
    Consumer(ConsumerKey("ORDERS", f"router-{name}"), (f"orders.{name}",), sampled=True)
    for name in ("created", "paid", "shipped")
)
OWN = (
    OwnStream("BACKPRESSURE_EVENTS", "nats stream add BACKPRESSURE_EVENTS", ("backpressure.v1.event.>",), exists=True),
    OwnStream("KV_backpressure_state", "nats kv add backpressure_state", ("$KV.backpressure_state.>",), exists=True),
    OwnStream(
        *("KV_backpressure_policy", "nats kv add backpressure_policy", ("$KV.backpressure_policy.>",)),
        optional=True,
        exists=True,
    ),
)
SERVER = Server(("nats://nats:4222",), "none", version="2.11.4", round_trip=0.0004)
FINE = Facts(
    settings=Settings(),
    server=SERVER,
    wall=NOW,
    clock_ahead=0.01,
    streams=("KV_backpressure_state", "ORDERS"),
    stored={"KV_backpressure_state": ("$KV.backpressure_state.>",), "ORDERS": ("orders.>",)},
    consumers=CONSUMERS,
    watched=subjects_of(CONSUMERS),
    own=OWN,
    account=Account(),
    rights=(Right("publish", "$JS.API.STREAM.LIST", True),),
)
