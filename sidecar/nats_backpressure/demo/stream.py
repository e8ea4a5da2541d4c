"""Creates the demo's stream and its consumer."""

from __future__ import annotations

from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

from nats_backpressure.demo.scenario import CONSUMER, STREAM, SUBJECT, Scenario


async def create_stream(js: JetStreamContext, scenario: Scenario) -> None:
    """Create both; those that exist as they should be stay as they are."""
    await js.add_stream(name=STREAM, subjects=[SUBJECT])
    config = ConsumerConfig(
        durable_name=CONSUMER,
        ack_policy=AckPolicy.EXPLICIT,
        max_ack_pending=1000,
        ack_wait=scenario.ack_wait,
        max_deliver=scenario.max_deliver,
    )
    await js.add_consumer(STREAM, config)
