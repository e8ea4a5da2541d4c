"""Every command that asks: how it reaches NATS, and what it says where that fails."""

from __future__ import annotations

import pytest
from nats.aio.client import Client

from nats_backpressure.cli.options import duration_between, parse_since
from tests.conftest import StartServer
from tests.support.command import Command
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import SUBJECT, Sidecar

LOGIN = 'authorization { user: "operator", password: "s3cret" }'
NOWHERE = Command("nats://127.0.0.1:1")


async def test_a_server_that_is_not_there_is_one_line_that_names_it_without_its_password() -> None:
    port = free_port()
    said = await NOWHERE.failed("status", "-s", f"nats://operator:s3cret@127.0.0.1:{port}")
    assert said == f"Error: cannot connect to nats://127.0.0.1:{port}: connection refused\n"


async def test_a_server_without_a_sidecar_is_told_apart(command: Command, server: NatsServer) -> None:
    said = await command.failed("status")
    assert said.startswith("Error: nobody answers under the name `backpressure` at nats://127.0.0.1:")
    assert "does a sidecar run there (--name)?" in said
    assert "the name `other`" in await command.failed("decide", "gateway", SUBJECT, "--name", "other")


async def test_a_server_that_falls_silent_costs_the_timeout_and_no_more(command: Command, server: NatsServer) -> None:
    server.pause()
    try:
        said = await command.failed("status", "--timeout", "300ms")
    finally:
        server.resume()
    assert said.startswith("Error: cannot connect to nats://127.0.0.1:")


async def test_the_flags_log_in_over_the_environment_and_a_wrong_password_is_not_repeated(
    start_server: StartServer,
) -> None:
    command = Command((await start_server(LOGIN)).url)
    right = await command.failed("status", "--user", "operator", "--password", "s3cret", NATS_TOKEN="another")
    assert "nobody answers" in right
    wrong = await command.failed("status", "--user", "operator", "--password", "wr0ng")
    assert "authorization violation" in wrong.lower()
    assert "wr0ng" not in wrong and "wr0ng" not in (await command.failed("status", "--user", "wr0ng"))


async def test_a_credentials_file_that_is_missing_is_named() -> None:
    said = await NOWHERE.failed("status", "--creds", "none.creds")
    assert "none.creds" in said and said.count("\n") == 1


async def test_a_service_error_is_told_in_the_services_words(command: Command, sidecar: Sidecar, nc: Client) -> None:
    for asked in (("status", "no.such"), ("decide", "gateway", "no.such"), ("policy", "get", "no.such")):
        said = await command.failed(*asked)
        assert said.startswith("Error: ") and "(404)" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "a..b"], "[SUBJECT]"),
        (["status", "-s", "http://x"], "--server: must be nats://HOST:PORT or tls://HOST:PORT"),
        (["status", "--creds", "a", "--nkey", "b"], "several logins"),
        (["status", "--tlscert", "a"], "--tlscert: cert_file and key_file must be set together"),
        (["status", "--timeout", "2h"], "must be from 100ms to 1m"),
        (["status", "--timeout", "soon"], "is not a duration; write it like 30s"),
        (["status", "--name", "a.b"], "--name: must match"),
        (["decide", "router", "a"], "No such command 'router'"),
        (["decide", "gateway", "a", "--attempt", "0"], "--attempt"),
        (["decide", "consumer", "a", "--max-messages", "0"], "--max-messages"),
        (["events", "--since", "yesterday"], "is neither an RFC 3339 time"),
        (["events", "--type", "panic"], "--type"),
        (["events", "--limit", "0"], "--limit"),
        (["override", "a", "shut", "--for", "1m"], "'shut' is not one of"),
        (["override", "a", "open"], "open and reject need --for"),
        (["override", "a", "auto", "--for", "1m"], "auto does not take it"),
        (["override", "a", "open", "--for", "30d"], "must be from 1s to 7d"),
        (["schema", "Nonsense"], "no message of that name; there are"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_what_cannot_be_meant_is_exit_2_before_anything_is_asked(arguments: list[str], said: str) -> None:
    assert said in await NOWHERE.failed(*arguments, code=2)


def test_durations_and_moments_are_read_as_people_write_them() -> None:
    assert duration_between(0, 1e6)("1h30m") == 5400 and duration_between(0, 1e6)("250ms") == 0.25
    assert parse_since("1970-01-01T01:00:10+01:00") == 10
