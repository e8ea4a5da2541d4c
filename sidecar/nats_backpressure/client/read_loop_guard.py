"""Keeps a message that nats-py cannot decode from ending the reading of the whole connection."""

from __future__ import annotations

from typing import Any

from nats.aio.client import Client

from nats_backpressure.client.stats import OnceLogger


def guard_read_loop(nc: Client, logger: OnceLogger) -> None:
    """Drop such a message, and log it once.

    A subject that is not UTF-8, or a header block without a line end, raises in nats-py's read loop (2.16; nats.py PR
    914), which then ends: the client still looks connected and receives nothing. Whoever may write a key of the state
    bucket could stop every gateway with it. A connection is guarded once, however many clients use it.
    """
    if "_process_msg" in vars(nc):
        return
    process = nc._process_msg

    async def guarded(*message: Any) -> None:
        try:
            await process(*message)
        except Exception as error:
            logger.warn("undecodable", "", f"a message that cannot be decoded is dropped: {type(error).__name__}")

    nc._process_msg = guarded  # type: ignore[method-assign, assignment]
