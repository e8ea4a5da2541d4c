"""`doctor` on real parts: a user JWT that ends, an account with limits, a clock that is wrong, a cluster of three."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nats
import pytest

from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.cli.doctor_facts import read_facts
from nats_backpressure.config.nats import Nats
from nats_backpressure.config.settings import Settings
from nats_backpressure.doctor.server_checks import JWT_SOON
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import format_rfc3339
from tests.conftest import StartServer
from tests.simulations.stored_samples import Requests
from tests.support.cluster import Cluster
from tests.support.command import Command
from tests.support.jwts import credentials_of_team, trusting
from tests.support.parts import need_server
from tests.support.router import CONSUMER, prepare
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, UNHURRIED, Sidecar, eventually

JETSTREAM = {"mem_storage": 1_000_000, "disk_storage": 100_000_000, "streams": 2, "consumer": 30}


async def examined(directory: Path, settings: str) -> dict[str, list[dict[str, Any]]]:
    """What the command finds, by check."""
    file = directory / "sidecar.yaml"
    file.write_text(settings)
    ran = await Command(None)("doctor", "--config", file, "-o", "json")
    assert ran.exit_code in (0, 1, 2) and not ran.stderr, ran.stderr
    by_check: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(ran.stdout)["findings"]:
        by_check.setdefault(each["check"], []).append(each)
    return by_check


async def test_a_jwt_that_ends_and_the_limits_of_an_account_are_seen(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(config=trusting(**JETSTREAM))
    file = tmp_path / "user.creds"
    settings = f"nats: {{servers: ['{server.url}'], credentials_file: '{file}'}}"

    credentials_of_team(file, exp=int(time.time() + JWT_SOON / 2))
    found = await examined(tmp_path, settings)
    assert found["connection"][0]["level"] == "ok" and "valid until" in found["connection"][0]["problem"]
    (soon,) = found["jwt"]
    assert soon["level"] == "warning" and "expires at" in soon["problem"] and str(file) in soon["remedy"]
    (account,) = found["account"]
    assert account["level"] == "error" and account["problem"].startswith("the account has 0 of 2 streams, and ")

    credentials_of_team(file, exp=int(time.time()) - 60)
    found = await examined(tmp_path, settings)
    assert [found[check][0]["level"] for check in ("connection", "jwt")] == ["error", "error"]
    assert "expired at" in found["connection"][0]["remedy"] and "account" not in found

    credentials_of_team(file)
    assert [each["level"] for each in (await examined(tmp_path, settings))["jwt"]] == ["ok"]


async def test_the_limits_of_the_tier_of_our_streams_are_those_that_count(
    start_server: StartServer, tmp_path: Path
) -> None:
    tiers = {"R1": JETSTREAM | {"streams": 5}, "R3": JETSTREAM | {"streams": 7}}
    server = await start_server(config=trusting(tiered_limits=tiers))
    credentials = credentials_of_team(tmp_path / "user.creds")
    for copies, streams in ((1, 5), (3, 7)):
        login = f"nats: {{servers: ['{server.url}'], credentials_file: '{credentials}'}}"
        (account,) = (await examined(tmp_path, f"{login}\npublish: {{replicas: {copies}}}"))["account"]
        assert f"0 of {streams} streams" in account["problem"], account


@pytest.mark.parametrize(("shift", "seen"), [(90, "behind"), (-90, "ahead of"), (0, "")])
async def test_a_clock_that_is_wrong_is_seen(
    server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float, seen: str
) -> None:
    need_server(server.version, (2, 10), "the time in replies")
    nc = await nats.connect(server.url)
    await nc.jetstream().add_stream(name="ORDERS", subjects=["orders"])
    await Resources(JetStreamApi(Requests(nc)), Names(), 1, 604_800, True).ensure()
    kv, ours = await nc.jetstream().key_value("backpressure_policy"), time.time
    for pattern, seconds in (("ended", -45), ("in-force", 45)):  # within what our clock is wrong by
        until = format_rfc3339(ours() + seconds)
        await kv.put(f"=override.{pattern}", json.dumps({"action": "open", "until": until}).encode())
    await nc.close()
    monkeypatch.setattr(time, "time", lambda: ours() + shift)
    found = await examined(tmp_path, f"nats: {{servers: ['{server.url}']}}")
    ((override,), (clock,)) = found["overrides"], found["clock"]
    assert override["problem"].startswith("the override `in-force` (open until "), override
    assert clock["level"] == ("warning" if seen else "ok")
    assert not seen or (clock["problem"].endswith(f"s {seen} the clock here") and " 90.0 s " in clock["problem"]), clock


@pytest.mark.slow
async def test_too_few_copies_in_a_cluster_and_one_that_is_down_are_seen(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        need_server(cluster.nodes[0].version, (2, 10), "the same errors")
        urls = ", ".join(f"'{node.url}'" for node in cluster.nodes)

        async def copies(n: int) -> list[tuple[str, str]]:
            found = await examined(tmp_path, f"nats: {{servers: [{urls}]}}\npublish: {{replicas: {n}}}")
            return [(each["level"], each["problem"]) for each in found.get("copies", ())]

        ((level, problem),) = await copies(1)
        assert level == "warning" and problem.startswith("publish.replicas is 1, in a cluster: BACKPRESSURE_EVENTS, ")
        assert not [level for level, _ in await copies(3) if level not in ("ok", "unknown")]
        nc = await nats.connect(cluster.nodes[0].url)
        await Resources(JetStreamApi(Requests(nc)), Names(), 1, 604_800, True).ensure()
        ((level, problem),) = await copies(3)
        assert level == "warning" and problem.endswith("KV_backpressure_policy: fewer than 3 copies, in a cluster")
        for stream in sorted(Names().ours):
            await nc.jetstream().update_stream((await nc.jetstream().stream_info(stream)).config, num_replicas=3)
        await nc.close()

        async def fits() -> bool:
            return [level for level, _ in await copies(3)] == ["ok"]

        await eventually(fits, "the copies to follow", 30)
        await cluster.nodes[2].kill()

        async def seen() -> bool:
            found = [each for each in await copies(3) if "do not follow" in each[1]]
            return len(found) == 3 and {level for level, _ in found} == {"warning"}

        await eventually(seen, "the copies that are down to be seen", 60)


@pytest.mark.slow
async def test_a_stream_whose_only_server_is_down_is_not_missed(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        need_server(cluster.nodes[0].version, (2, 10), "the same lists")
        urls = ", ".join(f"'{node.url}'" for node in cluster.nodes)
        settings = (
            f"nats: {{servers: [{urls}]}}\npublish: {{replicas: 3}}\npolicies: [{{subjects: [orders.new]}}]\n"
            "watch: [{stream: ORDERS, consumers: [router]}, {stream: '*', consumers: [router]}]"
        )
        nc = await nats.connect([node.url for node in cluster.nodes])
        js = nc.jetstream()
        await Resources(JetStreamApi(Requests(nc)), Names(), 3, 604_800, True).ensure()
        await js.add_stream(name="ORDERS", subjects=["orders.*"])
        await js.add_consumer("ORDERS", durable_name="router", filter_subject="orders.new", ack_policy="explicit")
        found = await examined(tmp_path, settings)
        assert [found[check][0]["level"] for check in ("jetstream", "watch", "policies", "requests")] == ["ok"] * 4
        leader = json.loads((await nc.request("$JS.API.STREAM.INFO.ORDERS", timeout=5)).data)["cluster"]["leader"]
        (holder,) = [node for node in cluster.nodes if await node_name(node.url) == leader]
        await nc.close()
        await holder.kill()

        async def unlisted() -> bool:
            nonlocal found
            found = await examined(tmp_path, settings)
            return [each["problem"] for each in found["jetstream"]] == ["the list of streams lacks ORDERS"]

        await eventually(unlisted, "the list to lack the stream", 60)
        for check in ("watch", "policies", "requests", "sampling", "installations"):
            assert {each["level"] for each in found[check]} == {"unknown"}, found[check]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_stream_of_ours_whose_only_server_is_down_is_said_to_be_there(tmp_path: Path, how: str) -> None:
    """A server that stops is known to be away at once: the list then has its streams all the same, without state."""
    async with Cluster(tmp_path) as cluster:
        need_server(cluster.nodes[0].version, (2, 10), "the same errors")
        servers = [node.url for node in cluster.nodes]
        nc = await nats.connect(servers)
        js = nc.jetstream()
        await Resources(JetStreamApi(Requests(nc)), Names(), 1, 604_800, True).ensure()
        await prepare(lambda: js.add_stream(name="ROUTER", subjects=[SUBJECT], num_replicas=3))
        await js.add_consumer("ROUTER", CONSUMER)
        info = json.loads((await nc.request("$JS.API.STREAM.INFO.BACKPRESSURE_EVENTS", timeout=5)).data)
        await nc.close()
        names = {await node_name(node.url): node for node in cluster.nodes}
        async with Sidecar(tmp_path, None, UNHURRIED | {"nats": {"servers": servers}}) as sidecar:
            await sidecar.observing()
            await getattr(names[info["cluster"]["leader"]], how)()
            found: dict[str, list[dict[str, Any]]] = {}

            async def told() -> bool:
                nonlocal found
                found = await examined(tmp_path, f"nats: {{servers: {json.dumps(servers)}}}")
                told = any(
                    "BACKPRESSURE_EVENTS cannot be read" in each["problem"] for each in found.get("resources", ())
                )
                # A moment ago others had their leader there.
                return told and all(each["level"] == "ok" for check in ("clock", "watch") for each in found[check])

            # While the connection is made with another server nothing else is found.
            await eventually(told, "the stream that is away, and nothing else", 60)
            lost = found["resources"][0]
            assert "its only copy" in lost["remedy"] and "the stored states are right" in lost["cost"]
            assert not any("the list of streams" in each["problem"] for some in found.values() for each in some)

            async def logged() -> bool:
                lines = [json.loads(line) for line in sidecar.log.splitlines() if '"stream.not_followed"' in line]
                hints = [each["hint"] for each in lines if each["level"] == "warning"]
                assert all("its only copy" in hint and "servers that are down" in hint for hint in hints)
                return bool(hints)

            await eventually(logged, "the line in the log", 90)


@pytest.mark.parametrize(
    ("domain", "api", "is_own"),
    [(None, None, True), ("here", None, True), ("hub", None, False), (None, "JS.hub.API", False)],
)
async def test_a_server_is_judged_where_its_jetstream_is_the_one_that_is_used(
    start_server: StartServer, tmp_path: Path, domain: str | None, api: str | None, is_own: bool
) -> None:
    server = await start_server(config='jetstream { domain: "here", store_dir: "%s" }' % (tmp_path / "store"))
    settings = Settings(nats=Nats(servers=(server.url,), js_domain=domain, js_api_prefix=api))
    assert (await read_facts(settings, (), 5.0)).server.has_jetstream is is_own


async def node_name(url: str) -> str:
    nc = await nats.connect(url)
    try:
        return str(nc._server_info["server_name"])
    finally:
        await nc.close()
