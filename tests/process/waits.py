"""Waits for what a running sidecar does, not for time to pass."""

from __future__ import annotations

from datetime import datetime

from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.support.sidecar import SUBJECT, Wire, eventually

SLACK = 2.0
"""Seconds added to a limit of the contract, for a machine that does other things as well."""
STOPS_WITHIN = 10.0
"""Seconds within which a process ends: 5 by the contract, and as many for its own exit on a busy machine."""
FIRES_WITHIN = 40.0
"""Seconds within which an alert fires. At best it takes 12 s: in the first 10 s after a start or a gap none fires, and
what it is about must last or be seen before."""


async def heartbeats(nc: Client, n: int = 2) -> None:
    """Wait until this many heartbeats more were written, by whichever sidecar."""
    written: list[Msg] = []

    async def add(message: Msg) -> None:
        written.append(message)

    async def enough() -> bool:
        return len(written) >= n

    subscription = await nc.subscribe("$KV.backpressure_state.=heartbeat", cb=add)
    await eventually(enough, f"{n} heartbeats")
    await subscription.unsubscribe()


async def observed_for(wire: Wire, seconds: float, subject: str = SUBJECT) -> None:
    """Wait until the sidecar has read the subject's consumers for this many seconds more."""

    async def sampled_at() -> datetime:
        return datetime.fromisoformat((await wire.ask(f"get.status.{subject}"))["sampled_at"])

    start = await sampled_at()

    async def long_enough() -> bool:
        return (await sampled_at() - start).total_seconds() >= seconds

    await eventually(long_enough, f"{seconds} s of readings", 2 * seconds + 15)
