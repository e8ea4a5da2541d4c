"""Three sidecars as processes grant no more than one would: 24 workers ask at the same moment."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.core.admission.grant_shares import UNKNOWN_FOR
from nats_backpressure.core.admission.open_grants import UNSEEN_LIFE
from nats_backpressure.core.admission.requesters import GRANT_LIFE
from tests.support.router import publish
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, eventually

ASKERS, ASKED, MARK = 24, 100, 500
ASK = json.dumps({"max_messages": ASKED}).encode()
MOMENTS = 100
"""Moments after which the whole room must have been granted, or a second is over."""


async def know_each_other(sidecars: list[Sidecar]) -> None:
    async def all_know() -> bool:
        return all(sidecar.log.count('"replica.present"') >= len(sidecars) - 1 for sidecar in sidecars)

    await eventually(all_know, "each sidecar to know the others")
    if len(sidecars) > 1:  # until then each holds back what others may have granted before it heard them
        await asyncio.sleep(UNSEEN_LIFE)


async def answers_to(nc: Client, subject: str, payload: bytes, asks: int, replies: int, ids: itertools.count) -> list:
    """Each question has a reply subject of its own, as those of workers with connections of their own."""
    queue = asyncio.Queue[Msg]()
    subscription = await nc.subscribe("_INBOX.asker.*.*", cb=queue.put)
    for _ in range(asks):
        await nc.publish(subject, payload, reply=f"_INBOX.asker.{next(ids)}.1")
    async with asyncio.timeout(10):
        answers = [json.loads((await queue.get()).data) for _ in range(replies)]
    await subscription.unsubscribe()
    return answers


async def all_count_what_was_granted(nc: Client, replicas: int, ids: itertools.count) -> None:
    """What a replica sent before its first answer is at the server, and what the server sent before the second question
    is counted before the second answer. A share counts once the others have known of it for a while."""
    for _ in range(2):
        await answers_to(nc, "$SRV.PING.backpressure", b"", 1, replicas, ids)
    await asyncio.sleep(UNKNOWN_FOR)


def most_in(room: int, replicas: int, seconds: float) -> int:
    """What replicas that hear nothing of each other grant in a moment: each its share of what it knows to be left, at
    most once in UNKNOWN_FOR. Within that time they grant the room."""
    lefts = [room] * replicas
    for _ in range(math.ceil(seconds / UNKNOWN_FOR)):
        lefts = [left - left // replicas - (rank < left % replicas) for rank, left in enumerate(lefts)]
    return replicas * room - sum(lefts)


@pytest.mark.parametrize("count", [1, 3])
async def test_24_askers_of_100_get_no_more_than_the_mark_together(
    nc: Client, server: NatsServer, router: None, tmp_path: Path, count: int
) -> None:
    async with AsyncExitStack() as stack:
        sidecars = [Sidecar(tmp_path, server.url, UNHURRIED | {"instance": f"pod-{n}"}) for n in range(count)]
        for sidecar in sidecars:
            await stack.enter_async_context(sidecar)
        for sidecar in sidecars:
            await sidecar.observing()
        await know_each_other(sidecars)
        await publish(nc, 10)
        ids, total, began = itertools.count(), 0, time.monotonic()
        moments: list[tuple[int, float]] = []
        # Nobody pulls: what is granted counts for a second, and every asker is another one.
        for _ in range(MOMENTS):
            asked_at = time.monotonic()
            answers = await answers_to(nc, f"backpressure.v1.decide.consumer.{SUBJECT}", ASK, ASKERS, ASKERS, ids)
            if time.monotonic() - began >= GRANT_LIFE:
                break
            granted, took = sum(answer["pull"]["max_messages"] for answer in answers), time.monotonic() - asked_at
            moments.append((granted, took))
            assert granted <= most_in(max(0, MARK - total), count, took), moments
            total += granted
            await all_count_what_was_granted(nc, count, ids)
        assert total >= 0.9 * MARK, moments
