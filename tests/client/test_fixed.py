"""The client for the tests of an application: it decides the same for everything, without a connection."""

from __future__ import annotations

from typing import Any

import pytest

from nats_backpressure.client import BackpressureClient


async def test_it_decides_the_same_for_every_subject_and_never_ages() -> None:
    async with BackpressureClient.fixed("reject", retry_after_seconds=7) as client:
        assert await client.watch(["orders.>"]) and await client.watch()
        refused = client.admit("orders.eu")
        assert (refused.admitted, refused.status, refused.freshness) == (False, "active", "known")
        assert refused.retry_after_seconds == 7
        assert client.admit("a", "critical") and client.stats.shed == 1
        assert client._cached["a"].until == float("inf")


async def test_it_answers_what_it_decides() -> None:
    reject, some, proceed = (BackpressureClient.fixed(action) for action in ("reject", "throttle", "continue"))
    assert (await reject.decide("a")).action == "reject"
    assert (await reject.decide("a", priority="critical")).action == "continue"
    pulls = [(await client.decide("a", "consumer", max_messages=5)).pull for client in (reject, some, proceed)]
    assert [pull and pull.max_messages for pull in pulls] == [0, 3, 5]
    assert (await proceed.decide("a")).failed_open is None


async def test_a_share_is_admitted_evenly() -> None:
    client = BackpressureClient.fixed("throttle", admit_ratio=0.25)
    assert sum(bool(client.admit("a")) for _ in range(100)) == pytest.approx(25, abs=1)
    assert all(BackpressureClient.fixed().admit("a") for _ in range(10))


@pytest.mark.parametrize(("action", "more"), [("stop", {}), ("throttle", {"admit_ratio": 2.0})])
async def test_what_there_is_not_is_refused(action: Any, more: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"none of|from 0 to 1"):
        BackpressureClient.fixed(action, **more)  # type: ignore[arg-type]
