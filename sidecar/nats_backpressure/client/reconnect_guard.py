"""Makes `close` of a connection end it, also where NATS is away: a program must be able to stop then."""

from __future__ import annotations

import asyncio

from nats.aio.client import Client, Srv


def guard_reconnect(nc: Client) -> None:
    """End a try to connect that was cancelled with CancelledError, also where nats-py sees only that it failed.

    Before Python 3.12 `asyncio.wait_for` loses a cancellation that comes together with the failure (decision 47). So
    `close` may not end the task that connects again, and `asyncio.run` then waits for it for ever. A connection is
    guarded once, however many clients use it.
    """
    if "_connect_to_server" in vars(nc):
        return
    connect = nc._connect_to_server

    async def guarded(server: Srv) -> None:
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            await connect(server)
        finally:
            if task and task.cancelling() > before:
                raise asyncio.CancelledError

    nc._connect_to_server = guarded  # type: ignore[method-assign, assignment]
    _guard_close(nc)


def _guard_close(nc: Client) -> None:
    """Drop what waits for the next connection: nats-py (2.16) writes it to the lost one, raises, and is not closed."""
    close = nc._close

    async def guarded(status: int, do_cbs: bool = True) -> None:
        if status == Client.CLOSED and nc.is_reconnecting:
            nc._pending.clear()
            nc._pending_data_size = 0
        await close(status, do_cbs)

    nc._close = guarded  # type: ignore[method-assign]
