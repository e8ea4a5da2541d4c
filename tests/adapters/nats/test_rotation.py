"""Logins and certificates that expire or are replaced while a connection is up: it comes back with the new ones."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from structlog.testing import capture_logs

from nats_backpressure.adapters.nats import patched_client
from nats_backpressure.adapters.nats.credentials import credentials
from nats_backpressure.config.nats import Nats, Tls
from tests.conftest import StartServer
from tests.support.connected import connected, options, up
from tests.support.jwts import credentials_of_team, trusting
from tests.support.sidecar import eventually

LIVES = 4
"""Seconds until a user JWT expires: its times are whole seconds."""


def expires() -> int:
    return int(time.time()) + LIVES


async def test_a_user_whose_jwt_expires_comes_back_with_the_one_in_the_file(
    start_server: StartServer, tmp_path: Path
) -> None:
    file, ends_at = tmp_path / "user.creds", expires()
    server = await start_server(config=trusting())
    async with connected(options(server, credentials_file=credentials_of_team(file, exp=ends_at))) as (connection, _):
        await up(connection)
        credentials_of_team(file)
        await up(connection, 2)
        assert ends_at - 1 <= time.time() <= ends_at + 10, "the server has ended the first one, and not we"


async def test_an_expired_jwt_is_named_and_not_tried_without_a_pause(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, tries = tmp_path / "user.creds", Counter[str]()

    def counting(nats: Nats) -> Any:
        tries["connect"] += 1
        return credentials(nats)

    monkeypatch.setattr(patched_client, "credentials", counting)
    server = await start_server(config=trusting())
    with capture_logs() as lines:
        async with connected(options(server, credentials_file=credentials_of_team(file, exp=expires()))) as (one, _):
            await up(one)

            async def refused() -> bool:
                errors = [line["error"] for line in lines if line["event"] == "nats.unreachable"]
                return any("uthori" in error or "xpired" in error for error in errors)

            await eventually(refused, "a line that says so, which a reset of the connection may come before", 60)
            before = tries["connect"]
            await asyncio.sleep(3.0)  # the time in which it is counted
            assert tries["connect"] - before <= 10
            credentials_of_team(file)
            await up(one, 2)
    errors = [line["error"] for line in lines if line["event"] == "nats.unreachable"]
    assert len(errors) <= 3, "one for each reason"


def written(where: Path, authority: trustme.CA) -> str:
    """A certificate for the server by this authority, in the place of the last one; the server's configuration."""
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(where / "server.key")
    certificate.cert_chain_pems[0].write_to_path(where / "server.pem")
    return f'tls {{ cert_file: "{where}/server.pem", key_file: "{where}/server.key" }}'


async def test_after_a_change_of_the_authority_the_new_file_is_read(start_server: StartServer, tmp_path: Path) -> None:
    """While only the server has changed, the line in the log says what is not trusted."""
    first, second, ours = trustme.CA(), trustme.CA(), tmp_path / "ca.pem"
    first.cert_pem.write_to_path(ours)
    server = await start_server(config=written(tmp_path, first))
    with capture_logs() as lines:
        async with connected(Nats((server.url,), tls=Tls(ca_file=str(ours)))) as (connection, _):
            await up(connection)
            server.config = written(tmp_path, second)
            await server.restart()

            async def refused() -> bool:
                return any("certificate" in line.get("error", "") for line in lines)

            await eventually(refused, "a line that names the certificate")
            assert not connection.connected
            second.cert_pem.write_to_path(ours)
            await up(connection, 2)


@pytest.mark.parametrize("whose", ["server", "client"])
async def test_a_certificate_that_expired_is_named_until_it_is_renewed(
    start_server: StartServer, tmp_path: Path, whose: str
) -> None:
    """A connection that is up goes on: only the next handshake looks at the time."""
    authority, yesterday = trustme.CA(), datetime.now(UTC) - timedelta(days=1)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def issue(name: str, until: datetime | None = None) -> None:
        since = yesterday - timedelta(days=1)
        certificate = authority.issue_cert("127.0.0.1", "localhost", not_before=since, not_after=until)
        certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")

    for name in ("server", "client"):
        issue(name, yesterday if name == whose else None)
    files = f'cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", ca_file: "{tmp_path}/ca.pem"'
    server = await start_server(config=f"tls {{ {files}, verify: true }}")
    tls = Tls(*(str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key")))
    with capture_logs() as lines:
        async with connected(Nats((server.url,), tls=tls)) as (connection, _):

            async def hints() -> list[str]:
                return [line["hint"] for line in lines if line["event"] == "nats.unreachable"]

            await eventually(hints, "a line that names the certificate")
            (first, *_) = await hints()
            named = "certificate of the server" if whose == "server" else tls.cert_file
            assert first.startswith("renew the certificate") and named in first
            issue(whose)
            server.reload(server.config)
            await up(connection)
    assert all(hint.startswith("renew the certificate") for hint in await hints())
