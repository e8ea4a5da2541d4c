"""Each kind of login, on a real server that requires it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import nkeys
import pytest
import trustme
from nats.aio.client import Client as PlainClient
from nats.aio.transport import TcpTransport

from nats_backpressure.adapters.nats.credentials import BadCredentials, credentials
from nats_backpressure.adapters.nats.patched_client import NoTls, PatchedClient, discard
from nats_backpressure.config.nats import Nats, Secret, Tls
from tests.conftest import StartServer
from tests.support.connected import connected, options, up
from tests.support.jwts import USER, credentials_of_team, pair, public, trusting
from tests.support.servers import NatsServer


async def accepts(server: NatsServer, **how: str) -> None:
    async with connected(options(server, **how)) as (connection, _):
        await up(connection)


@pytest.mark.parametrize(
    ("config", "how"),
    [
        pytest.param(
            'authorization {user: "u", password: "p"}', {"user": "u", "password": "p"}, id="user and password"
        ),
        pytest.param('authorization {token: "t"}', {"token": "t"}, id="token"),
    ],
)
async def test_a_secret_is_taken(start_server: StartServer, config: str, how: dict[str, str]) -> None:
    await accepts(await start_server(config=config), **how)


@pytest.mark.parametrize("kind", ["password_file", "token_file"])
async def test_a_secret_is_read_from_its_file(start_server: StartServer, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "secret"
    file.write_text("a-secret\n")
    user: dict[str, str] = {"user": "u"} if kind == "password_file" else {}
    config = 'user: "u", password: "a-secret"' if user else 'token: "a-secret"'
    await accepts(await start_server(config=f"authorization {{{config}}}"), **user, **{kind: str(file)})


async def test_an_nkey_seed_signs(start_server: StartServer, tmp_path: Path) -> None:
    user = pair(USER, 1)
    file = tmp_path / "user.nk"
    file.write_text(user.seed.decode() + "\n")
    server = await start_server(config=f"authorization {{users: [{{nkey: {public(user)}}}]}}")
    await accepts(server, nkey_seed_file=str(file))
    await accepts(server, nkey_seed=user.seed.decode())


async def test_a_credentials_file_signs_with_its_user(start_server: StartServer, tmp_path: Path) -> None:
    credentials = credentials_of_team(tmp_path / "user.creds")
    await accepts(await start_server(config=trusting()), credentials_file=credentials)


async def test_tls_with_a_certificate_of_our_own(start_server: StartServer, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    for who, certificate in {"server": ca.issue_cert("127.0.0.1", "localhost"), "client": ca.issue_cert("us")}.items():
        certificate.private_key_pem.write_to_path(tmp_path / f"{who}.key")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / f"{who}.pem")
    files = f'cert_file: "{tmp_path}/server.pem", key_file: "{tmp_path}/server.key", ca_file: "{tmp_path}/ca.pem"'
    server = await start_server(config=f"tls {{ {files}, verify: true }}")
    ours = {"ca_file": "ca.pem", "cert_file": "client.pem", "key_file": "client.key"}
    tls = Tls(**{what: str(tmp_path / name) for what, name in ours.items()})
    async with connected(Nats((server.url,), tls=tls)) as (connection, _):
        await up(connection)


WITH_SEED = "-----BEGIN NATS USER JWT-----\nHIDDEN.b.c\n------END------\n-----BEGIN USER NKEY SEED-----"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param("", "the file is empty", id="empty"),
        pytest.param("-----BEGIN NATS USER JWT-----\nabc", "no user JWT with its seed", id="truncated"),
        pytest.param("-----BEGIN NATS USER JWT-----", "no user JWT with its seed", id="truncated at once"),
        pytest.param(f"{WITH_SEED}\n", "no user JWT with its seed", id="truncated before the seed"),
        pytest.param(f"{WITH_SEED}\nSUAHIDDEN", "its nkey seed is damaged", id="truncated in the seed"),
    ],
)
def test_a_credentials_file_that_cannot_be_used_is_named(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "user.creds"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadCredentials, match=says) as error:
        credentials(Nats(("nats://x",), credentials_file=str(path)))
    assert str(path) in str(error.value)
    assert "HIDDEN" not in str(error.value)


def test_a_credentials_file_without_a_last_line_end_is_taken_whole(tmp_path: Path) -> None:
    path = tmp_path / "user.creds"
    seed = nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER).decode()
    path.write_text(f"{WITH_SEED}\n{seed}")
    given = credentials(Nats(("nats://x",), credentials_file=str(path)))["user_credentials"]
    assert PlainClient()._read_creds_user_nkey(given) == bytearray(seed.encode())


def test_a_seed_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = tmp_path / "user.nk"
    path.write_text("SUAHIDDEN\n")
    with pytest.raises(BadCredentials, match=r"user\.nk: its nkey seed is damaged"):
        credentials(Nats(("nats://x",), nkey_seed_file=str(path)))
    with pytest.raises(BadCredentials, match=r"^nkey_seed: its nkey seed is damaged"):
        credentials(Nats(("nats://x",), nkey_seed=Secret("SUAHIDDEN")))


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A directory with a CA and a server's certificate of it."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = ca.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "server.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    return tmp_path


async def test_a_server_without_tls_gets_no_password_from_who_asks_for_tls(certificates: Path) -> None:
    received: list[bytes] = []
    ca = str(certificates / "ca.pem")

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.10.0","max_payload":1048576,"auth_required":true}\r\n')
        received.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    login = {"user": "u", "password": Secret("HIDDEN")}
    for nats in (
        Nats((f"tls://{place}",), **login),  # type: ignore[arg-type]  # the two fields
        Nats((f"nats://{place}",), tls=Tls(ca_file=ca), **login),  # type: ignore[arg-type]
        Nats((f"tls://u:HIDDEN@{place}",)),
    ):
        client = PatchedClient(None, lambda kind, text: None)
        with pytest.raises(NoTls, match="offers no TLS"):
            await client.open(nats, "test", 5.0)
        await discard(client)
    server.close()
    await server.wait_closed()
    assert received == [b""] * 3


async def test_tls_that_a_server_only_offers_is_used(start_server: StartServer, certificates: Path) -> None:
    files = f'cert_file: "{certificates}/server.pem", key_file: "{certificates}/server.key"'
    server = await start_server(
        config=f'tls {{ {files} }}\nallow_non_tls: true\nauthorization {{user: "u", password: "p"}}'
    )
    nats = Nats((server.url,), user="u", password=Secret("p"), tls=Tls(ca_file=str(certificates / "ca.pem")))
    async with connected(nats) as (connection, _):
        await up(connection)
        transport = connection.client._transport
        assert isinstance(transport, TcpTransport) and transport._io_writer is not None
        assert transport._io_writer.get_extra_info("ssl_object") is not None
