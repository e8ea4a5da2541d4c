"""On real servers: a login that fails is named, again when the reason changes; `started` names the environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.conftest import StartServer
from tests.process.test_what_is_wrong import line, lines
from tests.support.jwts import USER, pair, public
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import UNHURRIED, Sidecar

ACCEPTS = "authorization { users: [ {user: us, password: right} ] }"


def beside(where: Path, **nats: Any) -> Sidecar:
    return Sidecar(where, None, UNHURRIED | {"nats": nats})


async def test_the_reason_is_said_again_when_it_changes(start_server: StartServer, tmp_path: Path) -> None:
    """NATS is down at the start, then takes another password, then ours (D9)."""
    port, secret = free_port(), tmp_path / "password"
    secret.write_text("wrong")
    login = f"user us with the password of {secret}"
    async with beside(tmp_path, servers=[f"nats://127.0.0.1:{port}"], user="us", password_file=str(secret)) as sidecar:
        await line(sidecar, "nats.unreachable", lambda each: "refused" in each["error"].lower())
        await start_server(ACCEPTS, port=port)
        said = await line(sidecar, "nats.unreachable", lambda each: "refuses this login" in each["hint"])
        assert said["login"] == login and "right" not in sidecar.log
        secret.write_text("right")
        await line(sidecar, "nats.connected", lambda each: True)
        hints = [each["hint"] for each in lines(sidecar, "nats.unreachable", connection=said["connection"])]
        assert len(set(hints)) == 2, hints


async def test_a_wrong_nkey_is_named_by_its_public_key(start_server: StartServer, tmp_path: Path) -> None:
    """D10: the server ends the connection; what the client sees of that is often a reset."""
    server = await start_server(f"authorization {{ users: [ {{nkey: {public(pair(USER, 1))}}} ] }}")
    seed = tmp_path / "user.nk"
    seed.write_text(pair(USER, 2).seed.decode())
    async with beside(tmp_path, servers=[server.url], nkey_seed_file=str(seed)) as sidecar:
        said = await line(sidecar, "nats.unreachable", lambda each: True)
        assert str(seed) in said["login"] and public(pair(USER, 2)) in said["login"]
        assert "refuses this login" in said["hint"] and pair(USER, 2).seed.decode() not in sidecar.log


async def test_a_client_certificate_that_is_missing_is_asked_for(start_server: StartServer, tmp_path: Path) -> None:
    """D10: the error itself is a broken pipe."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = ca.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    files = f'cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", ca_file: "{tmp_path}/ca.pem"'
    server = await start_server(f"tls {{ {files}, verify: true }}")
    async with beside(tmp_path, servers=[server.url], tls={"ca_file": str(tmp_path / "ca.pem")}) as sidecar:
        said = await line(sidecar, "nats.unreachable", lambda each: True)
        assert "nats.tls.cert_file" in said["hint"] and said["login"] == "none"


@pytest.mark.parametrize("variable", [None, "NATS_URL"])
async def test_started_names_the_variables_that_replace_what_the_file_has(
    server: NatsServer, tmp_path: Path, variable: str | None
) -> None:
    """D14: `NATS_URL` of a shell or a shared environment sends the sidecar elsewhere."""
    elsewhere = f"nats://127.0.0.1:{free_port()}"
    config = UNHURRIED | {"nats": {"servers": [server.url if variable is None else elsewhere]}}
    async with Sidecar(tmp_path, server.url if variable else None, config) as sidecar:
        await line(sidecar, "nats.connected", lambda each: True)
        (started,) = lines(sidecar, "started")
        assert started["servers"] == [server.url], json.dumps(started)
        assert started.get("environment", []) == ([variable] if variable else [])
