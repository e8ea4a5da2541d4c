"""Every command whose connection the server closes at any moment: it ends with its own exit code and a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from nats.aio.client import Client

from nats_backpressure.adapters.nats.patched_client import PatchedClient
from tests.support.command import Command
from tests.support.sidecar import SUBJECT, Sidecar

COMMANDS = (
    "doctor --config FILE",
    "status",
    f"decide gateway {SUBJECT}",
    "events",
    f"events {SUBJECT}",
    "policy ls",
    f"policy get {SUBJECT}",
    f"policy set {SUBJECT} -",
    f"policy rm {SUBJECT}",
    "override ls",
    f"override {SUBJECT} open --for 1m",
    f"forget {SUBJECT}",
)
MAY_FAIL = ("forget", "doctor")
"""A watched subject is not forgotten, and of an old server doctor warns."""


class Closing:
    """Closes the connection of a command as the server does, before what it sends as the n-th."""

    def __init__(self) -> None:
        self.sent, self.at = 0, 0

    def next_ends(self) -> bool:
        self.sent += 1
        return self.sent == self.at


@pytest.fixture
def closing(monkeypatch: pytest.MonkeyPatch) -> Closing:
    closing, sends, writes = Closing(), PatchedClient._send_command, PatchedClient.write_command

    async def send(client: PatchedClient, command: bytes, priority: bool = False) -> None:
        if closing.next_ends():
            await client._process_op_err(ConnectionResetError())
        await sends(client, command, priority)

    def write(client: PatchedClient, *arguments: Any) -> bool:
        if closing.next_ends() and client._transport is not None:
            client._transport._io_writer.transport.abort()
        return writes(client, *arguments)

    monkeypatch.setattr(PatchedClient, "_send_command", send)
    monkeypatch.setattr(PatchedClient, "write_command", write)
    return closing


@pytest.mark.parametrize("line", COMMANDS, ids=[line.partition(" --config")[0] for line in COMMANDS])
async def test_a_command_whose_connection_is_closed_says_so_at_any_moment(
    command: Command,
    closing: Closing,
    sidecar: Sidecar,
    nc: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
) -> None:
    """And at once: the request that it waited for ran into its timeout, and so said that nobody answered."""
    (file := tmp_path / "doctor.yaml").write_text(f"nats: {{servers: ['{command.url}']}}")
    monkeypatch.setattr("nats_backpressure.adapters.nats.presence_listener.LISTENS", 0.0)
    monkeypatch.setattr("nats_backpressure.cli.policy_bucket.REJECTION_WITHIN", 0.05)
    arguments, bucket = line.replace("FILE", str(file)).split(), await nc.jetstream().key_value("backpressure_policy")

    async def run() -> Result:
        await bucket.put(SUBJECT, b'{"retry_after_seconds": 8}')
        closing.sent = 0
        return await command(*arguments, data='{"retry_after_seconds": 7}')

    whole = await run()
    assert whole.exit_code == 0 or line.startswith(MAY_FAIL), whole.output
    for at in range(1, closing.sent + 1):
        closing.at = at
        ran = await run()
        assert ran.exit_code == whole.exit_code or "connection" in ran.output, f"{at}: {ran.output}"
        assert "in time" not in ran.output and "no answer from" not in ran.output, f"{at}: {ran.output}"
