"""`doctor`: several broken installations on one real server, each found with the line that ends it; nothing changes."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import nats
import pytest
from click.testing import CliRunner
from nats.aio.client import Client

from nats_backpressure.adapters.nats import other_installations
from nats_backpressure.adapters.nats.api import JetStreamApi
from nats_backpressure.adapters.nats.resources import Resources
from nats_backpressure.cli import main
from nats_backpressure.protocol.subjects import Names
from tests.conftest import StartServer
from tests.simulations.stored_samples import Requests
from tests.support.command import Command
from tests.support.parts import need_server
from tests.support.router import override
from tests.support.servers import NatsServer
from tests.support.sidecar import UNHURRIED, Sidecar, eventually

ACCOUNTS = """
accounts {
  FULL: { jetstream: enabled, users: [
    { user: full, password: p },
    { user: uncreating, password: p, permissions: { publish: { deny: "$JS.API.STREAM.CREATE.>" } } }
    { user: limited, password: p, permissions: {
      publish: { deny: ["$JS.API.CONSUMER.LIST.>", "$KV.backpressure_state.>", "$JS.API.STREAM.CREATE.>"] },
      subscribe: { deny: "$JS.EVENT.METRIC.>" } } } ] }
  BARE: { users: [{ user: bare, password: p }] }
}
"""


class Doctor:
    """The command with the login of a user, and what it finds."""

    def __init__(self, server: NatsServer, where: Path) -> None:
        self._command, self._server = Command(server.url), server
        self._file = where / "sidecar.yaml"

    async def findings(self, user: str, code: int | None, settings: str = "") -> dict[str, list[dict[str, Any]]]:
        """All but the right ones, by check, whatever the version of the server is."""
        self._file.write_text(settings or "{}")
        url = f"nats://{user}:p@127.0.0.1:{self._server.port}"
        ran = await self._command("doctor", "--config", self._file, "-o", "json", NATS_URL=url)
        assert code in (None, ran.exit_code), ran.output
        by_check: dict[str, list[dict[str, Any]]] = {}
        for each in json.loads(ran.stdout)["findings"]:
            if each["level"] not in ("ok", "unknown") and each["check"] != "version":
                assert each["cost"] and each["remedy"], each
                by_check.setdefault(each["check"], []).append(each)
        return by_check


async def installed(nc: Client) -> None:
    """A complete installation, an override, and another installation that watches one of its subjects."""
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    for name, sampled in (("created", "100"), ("paid", None)):
        await js.add_consumer("ORDERS", durable_name=name, filter_subject=f"orders.{name}", sample_freq=sampled)
    for names in (Names(), Names("team")):
        await Resources(JetStreamApi(Requests(nc)), names, 1, 604_800, True).ensure()
    await override(nc, "orders.paid", "open", 600)
    await (await js.key_value("team_state")).put("orders.paid", b"{}")


async def stored(nc: Client) -> dict[str, int]:
    return {info.config.name or "": info.state.messages for info in await nc.jetstream().streams_info()}


async def test_each_broken_world_is_found_and_nothing_is_changed(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(ACCOUNTS)
    need_server(server.version, (2, 10), "doctor without a warning about the version")
    doctor = Doctor(server, tmp_path)
    (wrong,) = (await doctor.findings("nobody", 2)).values()
    assert "Authorization Violation" in wrong[0]["problem"] and "refuses this login" in wrong[0]["remedy"]
    bare = await doctor.findings("bare", 2)
    assert bare.keys() == {"jetstream"} and "enable JetStream" in bare["jetstream"][0]["remedy"]
    empty = await doctor.findings("full", 0)
    assert empty.keys() == {"resources", "watch"}
    assert {each["level"] for some in empty.values() for each in some} == {"note"}
    assert [each["problem"].split()[0] for each in empty["resources"]] == [
        "BACKPRESSURE_EVENTS",
        "KV_backpressure_state",
        "KV_backpressure_policy",
    ]
    uncreating = await doctor.findings("uncreating", 2)
    assert "this login may not create it" in uncreating["resources"][0]["problem"]
    events, bucket, *_ = uncreating["rights"]
    assert "no event is published" in events["cost"] and "no request is answered" in bucket["cost"]

    nc = await nats.connect(server.url, user="full", password="p")
    try:
        await installed(nc)
        before = await stored(nc)
        found = await doctor.findings("full", 1)
        assert found.keys() == {"heartbeat", "overrides", "sampling", "installations"}, found
        assert found["sampling"][0]["remedy"].startswith("where that matters: nats consumer edit ORDERS paid")
        assert (
            "`team` has states of 1 subject that this one watches: orders.paid" in found["installations"][0]["problem"]
        )
        assert found["overrides"][0]["remedy"] == "nats-backpressure override 'orders.paid' auto"
        odd = await doctor.findings(
            "full",
            1,
            "watch: [{stream: ORDERS}, {stream: ORDRES}]\npublish: {replicas: 3}\npolicies: [{subjects: [x.>]}]",
        )
        assert odd.keys() >= {"watch", "policies"} and "did you mean ORDERS?" in odd["watch"][0]["problem"]
        (copies,) = odd["copies"]
        assert copies["problem"].endswith("publish.replicas is 3, and num_replicas is 1") and "resources" not in odd
        limited = await doctor.findings("limited", 2)
        assert limited.keys() >= {"rights", "jetstream", "state"}
        rights = [(each["level"], each["problem"].split()[-1]) for each in limited["rights"]]
        assert rights == [
            ("error", "$JS.API.CONSUMER.LIST.*"),
            ("error", "$KV.backpressure_state.>"),
            ("warning", "$JS.EVENT.METRIC.CONSUMER.ACK.*.*"),
            *(("note", f"$JS.API.STREAM.CREATE.{each}") for each in sorted(Names().ours)),
        ]
        assert "Permissions Violation" in limited["state"][0]["problem"]
        assert await stored(nc) == before
    finally:
        await nc.close()


async def test_an_events_stream_whose_subjects_are_taken_is_an_error_beside_a_sidecar_that_runs(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(ACCOUNTS)
    async with await nats.connect(server.url, user="full", password="p") as nc:
        await nc.jetstream().add_stream(name="FOREIGN", subjects=["backpressure.v1.event.>"])
        async with Sidecar(tmp_path, server.url.replace("://", "://full:p@"), UNHURRIED) as sidecar:
            await sidecar.observing()
            (missing,) = (await Doctor(server, tmp_path).findings("full", 2))["resources"]
            assert missing["problem"].endswith(", and cannot be created: backpressure.v1.event.> is stored by FOREIGN")
            assert "the stored states are right" in missing["cost"] and "stream edit FOREIGN" in missing["remedy"]


async def test_another_installation_is_seen_however_rarely_it_writes(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await start_server(ACCOUNTS)
    nc = await nats.connect(server.url, user="full", password="p")
    js = nc.jetstream()
    await js.add_stream(name="ORDERS", subjects=["orders.>"])
    await js.add_consumer("ORDERS", durable_name="paid", filter_subject="orders.paid")
    monkeypatch.setattr(other_installations, "RUNS_WITHIN", 0.0)  # its last write was long ago
    doctor = Doctor(server, tmp_path)
    rarely = UNHURRIED | {"name": "team", "publish": {"heartbeat_seconds": 3600}}
    async with Sidecar(tmp_path, server.url.replace("://", "://full:p@"), rarely) as team:
        await team.observing()

        async def seen() -> bool:
            found = await doctor.findings("full", None)
            return ["`team`" in each["problem"] for each in found.get("installations", ())] == [True]

        await eventually(seen, "the other installation")
        reader = await (await js.key_value("team_state")).watchall()
        await team.kill()

        async def gone() -> bool:
            return not await seen()

        await eventually(gone, "the other one to be gone")
        await reader.stop()
    await nc.close()


@pytest.mark.parametrize("stream", ["BACKPRESSURE_EVENTS", "KV_backpressure_state", "KV_backpressure_policy"])
@pytest.mark.parametrize("limit", ["max_bytes", "max_msgs", "max_msg_size"])
async def test_a_stream_of_ours_that_takes_nothing_more_is_an_error(
    start_server: StartServer, tmp_path: Path, stream: str, limit: str
) -> None:
    server = await start_server(ACCOUNTS)
    nc = await nats.connect(server.url, user="full", password="p")
    try:
        await installed(nc)
        js = nc.jetstream()
        if stream == "KV_backpressure_state":
            await (await js.key_value("backpressure_state")).put("orders.paid", b"{}")
        config = (await js.stream_info(stream)).config
        await js.update_stream(config.evolve(**{limit: 1}, discard="new"))
        if stream == "BACKPRESSURE_EVENTS" and limit == "max_msgs":
            await js.publish("backpressure.v1.event.x.y", b"{}")
        found = await Doctor(server, tmp_path).findings("full", 2)
        (full,) = [each for each in found["resources"] if each["level"] == "error"]
        assert f"{stream} has no room" in full["problem"] and f"({limit})" in full["problem"]
        assert ("state" in found) == (stream == "KV_backpressure_state")
    finally:
        await nc.close()


def test_a_server_that_is_away_is_an_error_with_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("nats: {servers: ['nats://127.0.0.1:2']}\n")
    environment = {"NATS_URL": "nats://127.0.0.1:1"}
    ran = CliRunner().invoke(main, ["doctor", "--config", str(file), "--timeout", "1s"], env=environment)
    first, cost, remedy, second, *_ = ran.stdout.splitlines()
    assert ran.exit_code == 2
    assert first.startswith("ERROR    connection") and "nats://127.0.0.1:1 (login: none)" in first
    assert cost.strip().startswith("cost: nothing is read") and remedy.strip().startswith(
        "do:   no NATS server listens"
    )
    assert second.startswith("warning  environment") and "NATS_URL" in second


async def test_what_a_sidecar_creates_just_now_is_no_error(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nats_backpressure.cli.doctor_facts.CREATED_WITHIN", 30.0)
    server = await start_server(ACCOUNTS)
    doctor = Doctor(server, tmp_path)
    async with await nats.connect(server.url, user="full", password="p") as nc:
        async with Sidecar(tmp_path, server.url.replace("://", "://full:p@"), UNHURRIED) as sidecar:
            await sidecar.observing()
            await nc.jetstream().delete_stream("BACKPRESSURE_EVENTS")
            assert "resources" not in await doctor.findings("full", None)
        await nc.jetstream().delete_stream("BACKPRESSURE_EVENTS")
        (missing,) = (await doctor.findings("full", None))["resources"]
        assert missing["level"] == "note", "the sidecar has just stopped, and creates it when it starts"


async def test_a_bucket_that_a_sidecar_creates_just_now_is_tried_as_any_other(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nats_backpressure.cli.doctor_facts.CREATED_WITHIN", 30.0)
    server = await start_server(ACCOUNTS)
    async with await nats.connect(server.url, user="full", password="p") as nc:
        async with Sidecar(tmp_path, server.url.replace("://", "://full:p@"), UNHURRIED) as sidecar:
            await sidecar.observing()
            await nc.jetstream().delete_stream("KV_backpressure_state")
            found = await Doctor(server, tmp_path).findings("limited", None)
            assert "resources" not in found and "Permissions Violation" in found["state"][0]["problem"], found


async def test_replicas_with_different_settings_files_are_named(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(ACCOUNTS)
    url, doctor = server.url.replace("://", "://full:p@"), Doctor(server, tmp_path)
    other = {"policies": [{"subjects": ["s"], "mode": "observe"}]}
    async with AsyncExitStack() as stack:
        for instance, more, groups in (("r1", {}, []), ("r2", {}, []), ("r3", other, [{"r1, r2", "r3"}])):
            replica = Sidecar(tmp_path, url, UNHURRIED | {"instance": instance} | more)
            await (await stack.enter_async_context(replica)).observing()
            found = (await doctor.findings("full", None)).get("heartbeat", [])
            named = [each["problem"].partition("different policies: ")[2] for each in found]
            assert [set(each.split("; ")) for each in named] == groups, instance
