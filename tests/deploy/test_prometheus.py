"""A real Prometheus with our rules scrapes a real sidecar: every rule, panel and trigger gets its rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig

from tests.deploy.monitoring_files import (
    ALERTS,
    ALL_RULES,
    CASES,
    DASHBOARD,
    DEPLOY,
    RULES,
    filled,
    keda_queries,
    metrics_in,
    panel_queries,
)
from tests.support.prometheus import Prometheus, promtool
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually

pytestmark = pytest.mark.slow

ROUTER = ConsumerConfig(
    durable_name="router", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000, sample_freq="100", ack_wait=60
)
ROWS_WITHIN = 60.0
"""Seconds for rows of all queries; a rate needs some scrapes."""


def test_the_rules_are_right_and_fire_when_they_should() -> None:
    promtool("check", "rules", RULES)
    assert "SUCCESS" in promtool("test", "rules", CASES)


def test_the_scrape_configuration_is_right() -> None:
    assert "rule" in promtool("check", "config", DEPLOY / "prometheus" / "prometheus.yaml")


async def work(nc: Client, wire: Wire) -> None:
    """An overload with acks, decisions of both roles, and a firing alert, as long as the test runs."""
    js = nc.jetstream()
    for _ in range(15_000):
        await nc.publish(SUBJECT, b"x")
    await nc.flush()
    pull = await js.pull_subscribe_bind("router", "ROUTER")
    while True:
        for message in await pull.fetch(10, timeout=5):
            await message.ack()
        await wire.ask(f"decide.gateway.{SUBJECT}")
        await wire.ask(f"decide.consumer.{SUBJECT}")
        await nc.publish(SUBJECT, b"x")
        await asyncio.sleep(0.05)


@pytest.fixture
async def watched(nc: Client, server: NatsServer, tmp_path: Path) -> AsyncIterator[tuple[Prometheus, Sidecar]]:
    await nc.jetstream().add_stream(name="ROUTER", subjects=[SUBJECT])
    await nc.jetstream().add_consumer("ROUTER", ROUTER)
    policy = {"subjects": [SUBJECT], "alert_for_seconds": 0}
    async with AsyncExitStack() as stack:
        sidecar = await stack.enter_async_context(Sidecar(tmp_path, server.url, UNHURRIED | {"policies": [policy]}))
        await sidecar.observing()
        working = asyncio.create_task(work(nc, await Wire(nc).listen()))
        stack.callback(working.cancel)
        target = f"127.0.0.1:{sidecar.port}"
        yield await stack.enter_async_context(Prometheus(tmp_path / "prometheus", RULES, target)), sidecar
        assert not working.done(), working.exception()


async def rows(prometheus: Prometheus, queries: dict[str, str]) -> None:
    """Wait until every query has returned rows."""
    left = dict(queries)

    async def none_left() -> bool:
        for name, expression in tuple(left.items()):
            if await prometheus.query(expression):
                del left[name]
        return not left

    try:
        await eventually(none_left, "rows", ROWS_WITHIN)
    except AssertionError:
        raise AssertionError(f"no rows: {left}") from None


async def test_every_query_of_ours_returns_rows_of_a_real_sidecar(watched: tuple[Prometheus, Sidecar]) -> None:
    prometheus, sidecar = watched
    metrics = set[str]().union(*(metrics_in(rule["expr"]) for rule in ALL_RULES))
    records = {rule["record"]: rule["record"] for rule in ALL_RULES if "record" in rule}
    await rows(prometheus, panel_queries() | keda_queries() | {name: name for name in metrics} | records)
    rules = {rule["name"]: rule for rule in await prometheus.evaluated()}
    assert {rule["alert"] for rule in ALERTS} <= set(rules)
    assert {rule["health"] for rule in rules.values()} == {"ok"}, rules
    [variable] = [each["definition"] for each in DASHBOARD["templating"]["list"] if each["name"] == "subject"]
    metric, label = variable.removeprefix("label_values(").removesuffix(")").split(", ")
    assert await prometheus.labels(label, metric) == [SUBJECT]
    for each in DASHBOARD["annotations"]["list"]:
        await prometheus.query(filled(each["expr"]))
    _, page = await sidecar.get("/metrics")
    promtool("check", "metrics", given=page)


async def test_a_deleted_consumer_is_gone_and_pages_nobody(watched: tuple[Prometheus, Sidecar], nc: Client) -> None:
    prometheus, _ = watched
    unknown: dict[str, Any] = next(rule for rule in ALERTS if rule["alert"] == "NatsBackpressureSubjectUnknown")
    js = nc.jetstream()
    await js.add_stream(name="OLD", subjects=["old"])
    await js.add_consumer("OLD", ROUTER)
    await rows(prometheus, {"watched": 'router_backpressure_status{subject="old"} == 0'})
    await js.delete_consumer("OLD", "router")
    await rows(prometheus, {"gone": 'router_backpressure_freshness{subject="old",reason="gone"}'})
    await prometheus.scraped()  # the rule sees what holds from now on
    assert not await prometheus.query(unknown["expr"])
    await Wire(nc).ask("forget.old")

    async def no_series() -> bool:
        return not await prometheus.query('{subject="old",job="nats-backpressure"}')

    await eventually(no_series, "every series of it to end", ROWS_WITHIN)
