"""On real servers: what keeps a sidecar from its work is one warning after 5 s, until it is mended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from msgspec import Struct

from tests.conftest import StartServer
from tests.support.router import CONSUMER, prepare
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, Wire, eventually

WITHIN = 30.0
"""Seconds for a warning: 5, and what a busy machine adds."""


def lines(sidecar: Sidecar, event: str, **facts: Any) -> list[dict[str, Any]]:
    """The lines of its log that are this event, with these facts."""
    logged = [json.loads(line) for line in sidecar.log.splitlines() if line.startswith("{")]
    return [each for each in logged if each["event"] == event and facts.items() <= each.items()]


async def line(sidecar: Sidecar, event: str, matches: Callable[[dict[str, Any]], bool], **facts: Any) -> dict[str, Any]:
    """Wait for the first such line."""

    async def look() -> dict[str, Any] | None:
        return next((each for each in lines(sidecar, event, **facts) if matches(each)), None)

    result: dict[str, Any] = await eventually(look, f"{event} {facts} in its log", WITHIN)
    return result


def account(*, jetstream: str = "enabled", publish: tuple[str, ...] = (), subscribe: tuple[str, ...] = ()) -> str:
    """An account with a user for the test and one for the sidecar, who may not publish or subscribe to these."""
    deny = f"publish: {{deny: {json.dumps(publish)}}}, subscribe: {{deny: {json.dumps(subscribe)}}}"
    has = f"jetstream: {jetstream}, " if jetstream else ""
    return (
        f"accounts {{ A {{ {has}users: [{{user: admin, password: a}}, "
        f"{{user: sidecar, password: s, permissions: {{{deny}}}}}] }} }}"
    )


def denied(*publish: str) -> str:
    return account(publish=publish)


ALL = account()
NONE = account(jetstream="")
INFO = "$JS.API.STREAM.INFO.BACKPRESSURE_EVENTS"
KEY = "$KV.backpressure_state"


class World(Struct, frozen=True):
    """A server on which something is wrong, what must be said of it, and the server on which it is mended."""

    wrong: str
    stage: str
    error: str
    hint: str
    mended: str = ALL
    nats: dict[str, str] = {}
    restarts: bool = False
    """Whether the server takes the mended configuration by a restart only."""


WORLDS = {
    "a server without JetStream": World(
        "jetstream: false\n" + NONE, "resources", f"{INFO}: nats: no responders", "jetstream {}", restarts=True
    ),
    "an account without JetStream": World(
        NONE, "resources", "JetStream not enabled for account (503, 10039)", "enable JetStream for this account"
    ),
    "another domain": World(
        "jetstream { domain: hub, store_dir: STORE }",
        "resources",
        INFO.replace("$JS", "$JS.spoke") + ": nats: no responders",
        "the domain `spoke`",
        "jetstream { domain: spoke, store_dir: STORE }",
        {"js_domain": "spoke"},
        restarts=True,
    ),
    "no right to look": World(
        denied("$JS.API.STREAM.INFO.*"),
        "resources",
        f'Permissions Violation for Publish to "{INFO}"',
        f"allow it to publish {INFO}",
    ),
    "no right to create": World(
        denied("$JS.API.STREAM.CREATE.*"),
        "resources",
        'Permissions Violation for Publish to "$JS.API.STREAM.CREATE.BACKPRESSURE_EVENTS"',
        "allow it to publish $JS.API.STREAM.CREATE.BACKPRESSURE_EVENTS",
    ),
    "no right to list": World(
        denied("$JS.API.STREAM.LIST"),
        "list streams",
        'Permissions Violation for Publish to "$JS.API.STREAM.LIST"',
        "allow it to publish $JS.API.STREAM.LIST",
    ),
    "no right to read consumers": World(
        denied("$JS.API.CONSUMER.LIST.*", "$JS.API.CONSUMER.INFO.*.*"),
        "read consumers",
        'Permissions Violation for Publish to "$JS.API.CONSUMER.LIST.ROUTER"',
        "allow it to publish $JS.API.CONSUMER.LIST.*",
    ),
    "no right to write states": World(
        denied(f"{KEY}.>"),
        "write",
        f'Permissions Violation for Publish to "{KEY}.{SUBJECT}"',
        f"allow it to publish {KEY}.>",
    ),
    "no right to write heartbeats": World(
        denied(f"{KEY}.>"),
        "heartbeat",
        f'Permissions Violation for Publish to "{KEY}.=heartbeat"',
        f"allow it to publish {KEY}.>",
    ),
    "no inbox": World(
        account(subscribe=("_INBOX_sidecar.>",)), "resources", f"{INFO}: no reply in time", "rights.missing"
    ),
    "too many streams": World(
        account(jetstream="{max_streams: 1}"),
        "resources",
        "maximum number of streams reached (400, 10027)",
        "the account may have no more streams",
    ),
    "too little storage": World(
        account(jetstream="{max_file: 10}"),
        "heartbeat",
        "resource limits exceeded for account (400, 10002)",
        "storage left",
    ),
}


def sidecar_of(where: Path, server: NatsServer, config: str, **nats: str) -> Sidecar:
    url = server.url.replace("://", "://sidecar:s@") if "accounts" in config else server.url
    return Sidecar(where, url, UNHURRIED | {"nats": nats})


async def add_router(server: NatsServer, config: str) -> None:
    login = {"user": "admin", "password": "a"} if "accounts" in config else {}
    async with await nats.connect(server.url, **login) as nc:  # type: ignore[arg-type]
        js = nc.jetstream()
        await prepare(lambda: js.add_stream(name="ROUTER", subjects=[SUBJECT]))
        await prepare(lambda: js.add_consumer("ROUTER", CONSUMER))


OFTEN = {"a server without JetStream", "another domain", "no right to create", "no right to write states", "no inbox"}
"""Those that `make test` tries; the others differ in one right or limit."""


@pytest.mark.parametrize(
    "world",
    [pytest.param(each, id=name, marks=() if name in OFTEN else pytest.mark.slow) for name, each in WORLDS.items()],
)
async def test_one_warning_says_what_is_wrong_until_it_is_mended(
    start_server: StartServer, tmp_path: Path, world: World
) -> None:
    wrong, mended = (each.replace("STORE", f'"{tmp_path}/js"') for each in (world.wrong, world.mended))
    server = await start_server(mended)
    await add_router(server, mended)
    server.config = wrong
    await server.restart()
    async with sidecar_of(tmp_path, server, wrong, **world.nats) as sidecar:
        said = await line(sidecar, "stage.failing", lambda each: world.error in each["error"], stage=world.stage)
        assert said["seconds"] >= 5 and said["cost"] and world.hint in said["hint"], said
        if world.restarts:
            server.config = mended
            await server.restart()
        else:
            server.reload(mended)
        await line(sidecar, "stage.works", lambda each: True, stage=world.stage)
        await sidecar.observing()
        told = [each["error"] for each in lines(sidecar, "stage.failing", stage=world.stage)]
        assert told == [said["error"]], "once"


async def test_it_is_said_again_when_the_reason_changes(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(ALL)
    await add_router(server, ALL)
    server.config = NONE
    await server.restart()
    reasons = {
        NONE: "JetStream not enabled for account (503, 10039)",
        denied("$JS.API.STREAM.INFO.*"): f'Permissions Violation for Publish to "{INFO}"',
        denied("$JS.API.STREAM.CREATE.*"): 'Violation for Publish to "$JS.API.STREAM.CREATE.BACKPRESSURE_EVENTS"',
    }
    async with sidecar_of(tmp_path, server, ALL) as sidecar:
        for config, error in reasons.items():
            server.reload(config)
            await line(sidecar, "stage.failing", lambda each, error=error: error in each["error"], stage="resources")  # type: ignore[misc]
        server.reload(ALL)
        await line(sidecar, "stage.works", lambda each: True, stage="resources")
        await sidecar.observing()
        told = [each["error"] for each in lines(sidecar, "stage.failing", stage="resources")]
        assert len(told) == 3 and all(want in got for want, got in zip(reasons.values(), told, strict=True))


async def test_a_state_bucket_that_is_full_is_named_until_it_has_room(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(ALL)
    await add_router(server, ALL)
    async with await nats.connect(server.url, user="admin", password="a") as nc:
        js = nc.jetstream()
        bucket = await js.create_key_value(bucket="backpressure_state", max_bytes=600)
        async with sidecar_of(tmp_path, server, ALL) as sidecar:
            said = await line(sidecar, "stage.failing", lambda each: True, stage="write")
            assert said["of"] == [SUBJECT] and "maximum bytes exceeded" in said["error"], said
            assert said["hint"].startswith("the stream is full") and "neither stored nor published" in said["cost"]
            config = (await js.stream_info(bucket._stream)).config
            config.max_bytes = -1
            await js.update_stream(config)
            await line(sidecar, "stage.works", lambda each: True, stage="write")
            assert len(lines(sidecar, "stage.failing", stage="write")) == 1


@pytest.mark.slow
async def test_without_room_for_the_policy_bucket_it_works_until_there_is(
    start_server: StartServer, tmp_path: Path
) -> None:
    config = account(jetstream="{max_streams: 3}")
    server = await start_server(config)
    await add_router(server, config)
    async with sidecar_of(tmp_path, server, config) as sidecar:
        await sidecar.observing()
        said = await line(sidecar, "resources.without", lambda each: True, stream="KV_backpressure_policy")
        assert said["error"] == "maximum number of streams reached (400, 10027)"
        assert "no more streams" in said["hint"] and "only the policies of the file" in said["cost"]
        server.reload(ALL)
        await line(sidecar, "resources.created", lambda each: True, stream="KV_backpressure_policy")


async def test_without_room_for_its_consumers_it_works_and_says_what_that_costs(
    start_server: StartServer, tmp_path: Path
) -> None:
    config = account(jetstream="{max_consumers: 1}")
    server = await start_server(config)
    await add_router(server, config)
    async with sidecar_of(tmp_path, server, config) as sidecar:
        await sidecar.observing()
        said = await line(sidecar, "stream.not_followed", lambda each: each["level"] == "warning")
        assert "maximum consumers limit reached (400, 10026)" in said["error"] and said["cost"]
        assert "no more consumers: raise its max_consumers" in said["hint"]


@pytest.mark.slow
async def test_where_others_have_all_consumers_it_starts_at_once_and_uses_its_own_when_there_is_room(
    start_server: StartServer, tmp_path: Path
) -> None:
    config = account(jetstream="{max_consumers: 1}")
    server = await start_server(config)
    await add_router(server, config)
    async with await nats.connect(server.url, user="admin", password="a") as nc:
        js = nc.jetstream()
        buckets = [await js.create_key_value(bucket=f"backpressure_{kind}") for kind in ("state", "policy")]
        watchers = [await bucket.watchall() for bucket in buckets]
        async with sidecar_of(tmp_path, server, config) as sidecar:
            await sidecar.observing()
            said = await line(sidecar, "bucket.read_singly", lambda each: True, stream="KV_backpressure_state")
            assert "no more consumers" in said["hint"]
            await line(sidecar, "stream.not_followed", lambda each: each["level"] == "warning")
            assert not lines(sidecar, "stage.failing")
            server.reload(ALL)

            async def followed() -> bool:
                return (await js.stream_info("KV_backpressure_state")).state.consumer_count == 2

            await eventually(followed, "a consumer of its own", 60)
        for watcher in watchers:
            await watcher.stop()


async def test_an_import_without_the_buckets_is_a_warning(start_server: StartServer, tmp_path: Path) -> None:
    """The API alone is imported: the streams are created in the other account, and no state is ever stored."""
    server = await start_server(
        """accounts {
          JS { jetstream: enabled, users: [{user: admin, password: a}], exports: [{service: "$JS.API.>"}] }
          US { users: [{user: sidecar, password: s}]
               imports: [{service: {account: JS, subject: "$JS.API.>"}, to: "team.js.>"}] } }"""
    )
    await add_router(server, ALL)
    async with sidecar_of(tmp_path, server, ALL, js_api_prefix="team.js") as sidecar:
        for stage, key in (("write", SUBJECT), ("heartbeat", "=heartbeat")):
            said = await line(sidecar, "stage.failing", lambda each: True, stage=stage)
            assert said["error"] == f"team.js.{KEY}.{key}: no reply in time"
            assert said["hint"].startswith("import the buckets of that account too")


async def test_a_start_without_the_events_stream_evaluates_and_publishes_once_it_is_there(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(ALL)
    await add_router(server, ALL)
    async with await nats.connect(server.url, user="admin", password="a") as nc:
        js, wire = nc.jetstream(), await Wire(nc).listen()
        sidecar = sidecar_of(tmp_path, server, ALL)
        async with sidecar:
            await sidecar.observing()
        events = (await js.stream_info("BACKPRESSURE_EVENTS")).config
        await js.delete_stream("BACKPRESSURE_EVENTS")
        sidecar.configure(UNHURRIED | {"publish": {"manage_resources": False}})
        async with sidecar:
            await sidecar.observing()
            for _ in range(2000):
                await nc.publish(SUBJECT, b"x")
            await wire.status(status="warning", reasons=["pending"])
            said = await line(sidecar, "stage.failing", lambda each: True, stage="events stream")
            assert "is missing" in said["error"] and "learn of no change" in said["cost"]
            await js.add_stream(events)
            assert (await wire.event("backpressure_warning", seconds=60))["seq"] == 1
            await line(sidecar, "stage.works", lambda each: True, stage="events stream")


async def test_a_first_start_without_the_events_stream_evaluates_at_every_replica_and_publishes_each_change_once(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Nothing is stored yet, and another stream has the subjects of the events."""
    server = await start_server(ALL)
    await add_router(server, ALL)
    async with await nats.connect(server.url, user="admin", password="a") as nc:
        js, wire = nc.jetstream(), await Wire(nc).listen()
        await js.add_stream(name="FOREIGN", subjects=["backpressure.v1.event.>"])
        first, second = (sidecar_of(tmp_path, server, ALL) for _ in range(2))
        async with first, second:
            await first.observing()
            for _ in range(2000):
                await nc.publish(SUBJECT, b"x")
            await wire.status(status="warning", reasons=["pending"])
            said = await line(first, "stage.failing", lambda each: True, stage="events stream")
            assert "stored by FOREIGN" in said["error"] and "take the subjects out of the stream" in said["hint"]
            await second.observing()
            await js.add_stream(name="LATER", subjects=["orders"])
            await js.add_consumer("LATER", CONSUMER)
            await wire.status("orders", status="inactive")
            await first.end()
            await second.observing()
            await js.purge_stream("ROUTER")
            await wire.status(status="inactive")
            assert not lines(first, "stage.failing", stage="load") + lines(second, "stage.failing", stage="load")
            await js.delete_stream("FOREIGN")
            await wire.event("recovery", seconds=60)
            stored = [(event["type"], event["seq"], event["epoch"]) for event in await wire.stored()]
            epoch = stored[0][2]
            assert stored == [("backpressure_warning", 1, epoch), ("recovery", 2, epoch)]
