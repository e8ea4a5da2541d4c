"""Replicas with different settings files: all show what is stored, and a rolling change is one change."""

from __future__ import annotations

import itertools

from msgspec.structs import replace

from nats_backpressure.config.settings import Settings, WatchSetting
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.protocol.values import ConsumerKey
from tests.simulations.replicas import KEY, SETTINGS, SUBJECT, Replicas
from tests.support.policies import entry

BETWEEN = 90
"""Messages above the mark of the old file and below that of the new one."""


def file(overload: int) -> Settings:
    marks = {"warn": 1, "critical": 2, "overload": overload}
    others = {"drain_seconds": {"overload": 1_000_000}, "recovery_hold_seconds": 0.2, "stall_seconds": 3600}
    return replace(SETTINGS, policies=(entry(">", pending=marks, alert_on_active=False, **others),))


OLD, NEW = file(20), file(200)


async def restart(replicas: Replicas, name: str, settings: Settings) -> None:
    await replicas.clock.finish(replicas.all[name].stop())
    replicas.add(name, settings).start()
    await replicas.clock.until(lambda: replicas.all[name].answering, f"{name} to answer")


async def test_beside_old_policies_new_ones_change_nothing_and_after_them_each_subject_once() -> None:
    async with Replicas(1, settings=OLD).running(3) as replicas:
        replicas.js.publish(KEY.stream, SUBJECT, BETWEEN)
        await replicas.published("warning")
        for name in ("r0", "r1"):
            await restart(replicas, name, NEW)
            await replicas.clock.run(10.0)
            assert replicas.problems() == [] and len(replicas.events()) == 1
        replicas.work()
        await replicas.published("inactive")
        await replicas.agree()
        replicas.js.publish(KEY.stream, SUBJECT, BETWEEN)
        await replicas.published("warning")
        await replicas.agree()
        await restart(replicas, "r2", NEW)
        await replicas.published("inactive")
        await replicas.agree(10.0)
        assert [event["type"] for event in replicas.events()] == 2 * ["backpressure_warning", "recovery"]


async def test_where_no_event_can_be_published_they_do_not_take_back_what_the_other_wrote() -> None:
    async with Replicas(2, settings=OLD).running(2) as replicas:
        await restart(replicas, "r1", NEW)
        replicas.publisher.faults.before = lambda: True
        statuses = []
        replicas.js.publish(KEY.stream, SUBJECT, BETWEEN)
        for _ in range(100):
            await replicas.clock.run(0.2)
            state = replicas.state()
            statuses.append(state["status"] if state else "")
        assert sum(a != b for a, b in itertools.pairwise(statuses)) <= 1


async def test_one_with_old_policies_that_dies_is_replaced_by_those_with_new_ones() -> None:
    async with Replicas(2, settings=OLD).running(1) as replicas:
        replicas.js.publish(KEY.stream, SUBJECT, BETWEEN)
        await replicas.published("warning")
        replicas.add("r1", NEW).start()
        await replicas.clock.run(10.0)
        assert len(replicas.events()) == 1
        await replicas.all["r0"].kill()
        await replicas.published("inactive", 10.0)
        await replicas.agree()


async def test_an_alert_of_what_is_watched_no_more_is_resolved_at_once() -> None:
    """What only another file watches is not awaited."""
    other = ConsumerKey(KEY.stream, "other")
    alerts = ({"name": "deep", "when": {"pending_above": 5}, "for_seconds": 1},)
    policy = entry(">", alert_on_active=False, alerts=alerts, drain_seconds={"overload": 1_000_000})
    watching = {
        key: replace(SETTINGS, policies=(policy,), watch=(WatchSetting(key.stream, (key.consumer,)),))
        for key in (KEY, other)
    }
    replicas = Replicas(settings=watching[KEY])
    replicas.js.add_consumer(other, ConsumerConfig())
    async with replicas.running(1):
        await replicas.clock.run(15.0)
        replicas.js.publish(KEY.stream, SUBJECT, BETWEEN)
        replicas.js.ack(other, *replicas.js.pull(other, BETWEEN))
        await replicas.clock.until(lambda: [e["type"] for e in replicas.events()] == ["alert_firing"], "the alert")
        await restart(replicas, "r0", watching[other])
        await replicas.clock.run(5.0)
        assert [event["type"] for event in replicas.events()] == ["alert_firing", "alert_resolved"]
