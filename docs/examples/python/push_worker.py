"""A worker with a push subscription of nats-py: the server itself stops at `max_ack_pending`."""

import asyncio
import logging
import os
import signal
from contextlib import suppress

import nats
from nats.aio.msg import Msg
from nats.errors import ConnectionReconnectingError
from nats.js.api import ConsumerConfig

log = logging.getLogger("worker")
IN_FLIGHT = 20
"""Messages that are delivered and not acknowledged, of all workers together."""
ACK_WAIT = 60
"""Seconds. They run from the delivery on: longer than it takes to work off all that is in flight."""


async def log_error(error: Exception) -> None:
    log.warning("NATS: %r", error)  # without a callback nats-py logs a traceback at each try


async def receive(message: Msg) -> None:
    await asyncio.sleep(0.02)  # the work; nats-py waits for it before the next message
    await message.ack()
    print(f"handled {message.data.decode()}", flush=True)


async def work() -> None:
    nc = await nats.connect(os.environ["NATS_URL"], max_reconnect_attempts=-1, error_cb=log_error)
    js = nc.jetstream()
    config = ConsumerConfig(
        durable_name="router",
        deliver_subject="deliver.router",
        deliver_group="router",  # several such workers share the messages
        max_ack_pending=IN_FLIGHT,
        ack_wait=ACK_WAIT,
    )
    await js.add_consumer("ROUTER", config)  # or change `max_ack_pending` of the one that is there
    await js.subscribe_bind("ROUTER", config, "router", cb=receive, manual_ack=True)
    try:
        await asyncio.Event().wait()
    finally:
        with suppress(ConnectionReconnectingError):  # NATS is away
            await nc.drain()  # what is here already is worked off


async def main() -> None:
    working = asyncio.create_task(work())
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, working.cancel)
    with suppress(asyncio.CancelledError):
        await working


if __name__ == "__main__":
    asyncio.run(main())
