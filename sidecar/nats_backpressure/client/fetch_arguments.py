"""What `PullGate.fetch` refuses of its arguments: what nats-py's does, also where it is the server that refuses."""

from __future__ import annotations

from nats.js.errors import APIError

LONGEST = 2**63 - 1
"""Nanoseconds that the server can read."""


def check(batch: int, timeout: float | None, heartbeat: float | None) -> bool:
    """Returns whether there would be heartbeats. Raises ValueError, OverflowError and TypeError, and APIError (400)
    where nats-py has it from the server."""
    if batch < 1:
        raise ValueError("nats: invalid batch size")
    if timeout is not None and timeout <= 0:
        raise ValueError("nats: invalid fetch timeout")
    if batch != 1 and not isinstance(batch, int | float):
        raise TypeError(f"batch is a {type(batch).__name__}, not a number of messages")
    if batch != 1 and isinstance(batch, float):
        raise _refused(f"batch {batch} is no whole number of messages")
    expires = None if timeout is None else int(timeout * 1_000_000_000) - 100_000  # as nats-py
    idle = int(heartbeat * 1e9) if heartbeat else 0  # not an integer: that many times a list would fill the memory
    if max(expires or 0, idle) > LONGEST:
        raise _refused(f"timeout {timeout} or heartbeat {heartbeat} is too long")
    if idle > 0 and (expires is None or 0 < expires < 2 * idle):
        raise _refused(f"heartbeat {heartbeat} value too large: at most half of the timeout, {timeout}")
    return idle > 0


def _refused(why: str) -> APIError:
    return APIError(code=400, description=f"Bad Request - {why}")
