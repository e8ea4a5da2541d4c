"""A worker in FastStream whose pull subscriber asks the sidecar before each pull."""

import asyncio
import os
from contextlib import suppress

from faststream import FastStream
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.errors import ConnectionReconnectingError

from nats_backpressure.client import BackpressureClient, PullGate

SUBJECT = "beamline.router.v1.decide"

broker = NatsBroker(os.environ["NATS_URL"], inbox_prefix="_INBOX_consumer")
app = FastStream(broker)
subscriber = broker.subscriber(
    SUBJECT,
    stream=JStream("ROUTER", declare=False),
    durable="router",
    pull_sub=PullSub(batch_size=10, timeout=1.0),
)


@subscriber
async def decide(message: NatsMessage) -> None:
    """It takes the bytes as they are: FastStream parses the JSON of a typed argument, and rejects, which loses, what
    does not fit its type."""
    await asyncio.sleep(0.05)  # the work; FastStream acknowledges after it
    print(f"handled {message.body.decode(errors='replace')}", flush=True)


@app.after_startup
async def ask_before_each_pull() -> None:
    """FastStream has started its first pull already: that one, of a batch at most, is not asked for."""
    client, subscription = BackpressureClient(await broker.connect()), subscriber.subscription
    assert subscription is not None
    # FastStream only calls `fetch` and `unsubscribe`.
    subscriber.subscription = PullGate(client, subscription, SUBJECT)  # type: ignore[assignment]


if __name__ == "__main__":
    with suppress(ConnectionReconnectingError):  # FastStream cannot end its connection while NATS is away
        asyncio.run(app.run())
