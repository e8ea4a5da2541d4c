"""What the client keeps a bounded number of: what is used again is never the oldest, whatever else comes."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.client import event_deduplicator, requests, state_mirror, stats
from nats_backpressure.client.event_deduplicator import EventDeduplicator
from nats_backpressure.client.local_admission import LocalAdmission
from nats_backpressure.client.requests import RequestSender
from nats_backpressure.client.state_mirror import HeartbeatAge, StateMirror
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.client.wakeups import MOST_NOTICED, Wakeups
from nats_backpressure.protocol.messages import Heartbeat
from nats_backpressure.protocol.subjects import Names
from tests.simulations.decision_service import GATEWAY
from tests.simulations.state_bucket import state

MOST = 3
Kept = tuple[Callable[[str], Awaitable[None]], Callable[[], Collection[str]]]
"""What uses a key, and the keys that are kept."""


def answers() -> Kept:
    class Answering(Client):
        is_connected = True  # type: ignore[assignment]

        async def request(self, subject: str, *_: Any, **__: Any) -> Any:
            class Reply:
                headers = None
                data = json.dumps(GATEWAY | {"subject": subject, "valid_for_ms": 100}).encode()

            return Reply

    sender = RequestSender(Answering(), Names(), Stats(), OnceLogger(), max_cached=MOST)

    async def use(key: str) -> None:
        await sender.decide(key, "gateway", {}, 10)

    return use, lambda: [key.subject for key in sender._cache]


def events_of_subjects() -> Kept:
    events = EventDeduplicator(lambda _: None, Stats(), OnceLogger())

    async def use(key: str) -> None:
        await events.receive(json.dumps({"subject": key, "epoch": "e", "seq": 1}).encode())

    return use, lambda: events._last_seqs


def epochs() -> Kept:
    events = EventDeduplicator(lambda _: None, Stats(), OnceLogger())

    async def use(key: str) -> None:
        await events.receive(json.dumps({"subject": "orders", "epoch": key, "seq": 1}).encode())

    return use, lambda: events._last_seqs.get("orders", {})


def instances() -> Kept:
    age = HeartbeatAge()

    async def use(key: str) -> None:
        age.receive(Heartbeat(instance=key), 0.0, 0.0)

    return use, lambda: age.sampled


def states() -> Kept:
    mirror = StateMirror(max_keys=MOST)
    mirror.filter.add([">"])

    async def use(key: str) -> None:
        mirror.put(key, json.dumps(state(key)).encode(), 0.0, 0.0)

    return use, lambda: mirror.states


def admissions() -> Kept:
    local = LocalAdmission(None, MOST)

    async def use(key: str) -> None:
        local._mirror.version += 1  # a state was written: the answer is computed again
        local.admit(key)

    return use, lambda: local._cached


def problems() -> Kept:
    logger = OnceLogger()

    async def use(key: str) -> None:
        logger._next.clear()  # a minute later
        logger.warn("unwatched", key, "not watched")

    return use, lambda: logger._reported.get("unwatched", {})


@pytest.mark.parametrize("make", [answers, events_of_subjects, epochs, instances, states, admissions, problems])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(used=st.lists(st.sampled_from("abcdef"), max_size=20))
async def test_those_used_last_are_kept(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Kept], used: list[str]
) -> None:
    monkeypatch.setattr(event_deduplicator, "MAX_SUBJECTS", MOST)
    monkeypatch.setattr(event_deduplicator, "MAX_EPOCHS", MOST)
    monkeypatch.setattr(requests, "MAX_VALID", 0.0)
    monkeypatch.setattr(state_mirror, "MAX_INSTANCES", MOST)
    monkeypatch.setattr(stats, "MAX_REPORTED", MOST)
    use, kept = make()
    for key in used:
        await use(key)
    last = list(dict.fromkeys(reversed(used)))[:MOST]
    assert set(kept()) == set(last)


async def test_of_a_key_that_was_noticed_the_last_value_counts_also_at_the_limit() -> None:
    noticed = Wakeups("$KV.states.")
    for n in range(MOST_NOTICED):
        await noticed.receive(Msg(Client(), f"$KV.states.{n}", data=b"first"))
    await noticed.receive(Msg(Client(), "$KV.states.7", data=b"last"))
    values, _ = noticed.take()
    assert (len(values), values["7"]) == (MOST_NOTICED, hash(b"last"))
