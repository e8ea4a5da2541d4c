"""Querying commands print one line for a server or a service that does not answer."""

from __future__ import annotations

from pathlib import Path

from nats.aio.client import Client

from nats_backpressure.adapters.nats.cli_client import MISSING_RIGHT, ServiceClient
from nats_backpressure.adapters.nats.patched_client import settled
from nats_backpressure.config.nats import Nats, Secret
from nats_backpressure.protocol.subjects import Names
from tests.conftest import StartServer
from tests.support.command import Command
from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import SUBJECT, Sidecar

LOGIN = 'authorization { user: "operator", password: "s3cret" }'

NOWHERE = Command("nats://127.0.0.1:1")


async def test_a_missing_server_prints_one_line_with_its_address_but_not_its_password() -> None:
    port = free_port()
    output = await NOWHERE.failed("status", NATS_URL=f"nats://operator:s3cret@127.0.0.1:{port}")
    assert output == f"Error: cannot connect to nats://127.0.0.1:{port}: connection refused\n"


async def test_a_server_without_a_sidecar_has_its_own_message(command: Command, server: NatsServer) -> None:
    output = await command.failed("status")
    assert output.startswith("Error: nobody answers under the name `backpressure` at nats://127.0.0.1:")
    assert "does a sidecar run there (--name)?" in output
    assert "the name `other`" in await command.failed("decide", "gateway", SUBJECT, "--name", "other")


async def test_a_silent_server_ends_the_command_after_the_timeout(command: Command, server: NatsServer) -> None:
    server.pause()
    try:
        output = await command.failed("status", "--timeout", "300ms")
    finally:
        server.resume()
    assert output.startswith("Error: cannot connect to nats://127.0.0.1:")


async def test_flags_replace_the_environment_login_and_a_wrong_password_is_not_printed(
    start_server: StartServer, tmp_path: Path
) -> None:
    command = Command((await start_server(LOGIN)).url)
    password = tmp_path / "password"
    password.write_text("s3cret")
    right = await command.failed("status", "--user", "operator", "--password-file", password, NATS_TOKEN="another")
    assert "nobody answers" in right
    wrong = await command.failed("status", "--user", "operator", NATS_PASSWORD="wr0ng", NATS_TOKEN="another")
    assert "authorization violation" in wrong.lower() and "wr0ng" not in wrong


async def test_a_missing_credentials_file_is_named() -> None:
    output = await NOWHERE.failed("status", "--creds", "none.creds")
    assert "none.creds" in output and output.count("\n") == 1


async def test_a_service_error_is_printed_as_the_service_returned_it(
    command: Command, sidecar: Sidecar, nc: Client
) -> None:
    for asked in (("status", "no.such"), ("decide", "gateway", "no.such"), ("policy", "get", "no.such")):
        output = await command.failed(*asked)
        assert output.startswith("Error: ") and "(404)" in output and output.count("\n") == 1


async def test_a_right_that_is_missing_is_named_at_once_as_the_server_spells_it(start_server: StartServer) -> None:
    server = await start_server(
        'authorization { users: [{ user: u, password: p, permissions: { publish: { deny: ["*.v1.get.>", "$JS.>"] }, '
        'subscribe: { deny: ["*.v1.event.>"] } } }] }'
    )
    limited = Command(f"nats://u:p@127.0.0.1:{server.port}")
    hint = "`nats-backpressure permissions --role operator` prints the rights that commands need"
    for arguments, denied in (
        (("status", "--name", "Team"), 'Publish to "Team.v1.get.status"'),
        (("events", "--name", "Team"), 'Publish to "$JS.API.STREAM.INFO.TEAM_EVENTS"'),
        (("events", "--name", "Team", "--follow"), 'Subscription to "Team.v1.event.*.>"'),
    ):
        output = await limited.failed(*arguments, "--timeout", "60s")
        assert f"Permissions Violation for {denied}" in output and output.endswith(f"; {hint}\n")


async def test_a_right_whose_lack_has_no_other_sign_is_named_too(start_server: StartServer) -> None:
    server = await start_server(
        'authorization { users: [{ user: u, password: p, permissions: { publish: { deny: "x" } } }] }'
    )
    service = ServiceClient(Nats((server.url,), user="u", password=Secret("p")), Names(), 5.0)
    client = await service.connect()
    await client.publish("x", b"", reply="inbox")
    await settled(client)
    text = service.with_missing_rights("no reply")
    assert text == f'no reply; Permissions Violation for Publish to "x"; {MISSING_RIGHT}'
    await service.close()


async def test_a_user_without_the_inboxes_of_an_operator_is_told_the_option(start_server: StartServer) -> None:
    rights = '{user: me, password: p, permissions: {publish: ">", subscribe: "_INBOX.>"}}'
    server = await start_server(f"authorization {{users: [{rights}]}}")
    command = Command(f"nats://me:p@127.0.0.1:{server.port}")
    assert "--inbox-prefix" in await command.failed("status")
    assert "nobody answers" in await command.failed("status", "--inbox-prefix", "_INBOX")
