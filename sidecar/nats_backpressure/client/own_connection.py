"""A connection of our own to NATS, for who has no event loop: it is made, and made again whenever it is lost."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from nats.aio.client import Client

from nats_backpressure.client.stats import OnceLogger
from nats_backpressure.protocol.inboxes import inbox_of

RETRY_SECONDS = 5.0
"""Seconds before a connection that was given up is made again, at most; at least half of it."""
CLOSED_POLL = 0.5
"""Seconds between two looks whether it was given up."""
CLOSE_TIMEOUT = 1.0
"""Seconds for closing it."""
DEFAULTS: Mapping[str, Any] = {
    "max_reconnect_attempts": -1,
    "ping_interval": 10,
    "name": "backpressure client",
    "inbox_prefix": inbox_of("gateway"),
}
"""Options in which it differs from nats-py: it does not give up, notices a dead server within half a minute, and
receives replies where the printed rights let gateways."""


def checked_options(servers: str | list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of nats-py's `connect`. Raises ValueError without a server, TypeError for what is no option."""
    if not servers:
        raise ValueError("no NATS server is named")
    arguments = {"servers": servers, **DEFAULTS, **options}
    inspect.signature(Client.connect).bind(None, **arguments)
    return arguments


async def stay_connected(nc: Client, arguments: Mapping[str, Any], logger: OnceLogger, stop: asyncio.Event) -> None:
    """Until `stop` is set, and cancelled to notice it at once: nats-py's connect may swallow that (2.16). It also gives
    up for good where the server refuses a login or a message."""

    async def log_error(error: Exception) -> None:
        logger.warn("connection", type(error).__name__, f"the connection to NATS: {type(error).__name__} {error}")

    try:
        while not stop.is_set():
            nc._server_pool.clear()  # connect() adds to it
            try:
                await nc.connect(**{"error_cb": log_error, **arguments})
                while not (nc.is_closed or stop.is_set()):
                    await _pause(CLOSED_POLL, stop)
            except Exception as error:  # what the arguments or the server's answer may raise
                await log_error(error)
            await _pause(RETRY_SECONDS * random.uniform(0.5, 1.0), stop)
    finally:
        with suppress(Exception):  # it may be anywhere
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await nc.close()


async def _pause(seconds: float, stop: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
