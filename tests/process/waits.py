"""Waits for what a running sidecar does, not for time to pass."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime

from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.support.sidecar import SUBJECT, Wire, eventually

SLACK = 2.0
"""Seconds added to a limit of the contract, for a machine that does other things as well."""


async def heartbeats(nc: Client, n: int = 2, *, instances: int = 1) -> None:
    """Wait until each of this many sidecars has written `n` more heartbeats."""
    counts: Counter[str] = Counter()

    async def count(message: Msg) -> None:
        counts[json.loads(message.data)["instance"]] += 1

    async def enough() -> bool:
        return sum(written >= n for written in counts.values()) >= instances

    subscription = await nc.subscribe("$KV.backpressure_state.=heartbeat", cb=count)
    await eventually(enough, f"{n} heartbeats of {instances} sidecars")
    await subscription.unsubscribe()


async def observed_for(wire: Wire, seconds: float, subject: str = SUBJECT) -> None:
    """Wait until the sidecar has read the subject's consumers for this many seconds more."""

    async def sampled_at() -> datetime:
        return datetime.fromisoformat((await wire.ask(f"get.status.{subject}"))["sampled_at"])

    start = await sampled_at()

    async def long_enough() -> bool:
        return (await sampled_at() - start).total_seconds() >= seconds

    await eventually(long_enough, f"{seconds} s of readings", 2 * seconds + 15)
