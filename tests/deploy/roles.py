"""The users of deploy/nats/users.conf on a real server: their logins, and the work of each."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import TimeoutError as NatsTimeoutError

from nats_backpressure.client import PullGate
from tests.support.command import Command
from tests.support.servers import NatsServer
from tests.support.sidecar import QUICK, SUBJECT

FILE = Path(__file__).resolve().parents[2] / "deploy/nats/users.conf"
API, OURS, STREAM = "$JS.API", "backpressure.v1", "ROUTER"
ROLES = ("sidecar", "gateway", "consumer", "operator")


async def login(server: NatsServer, role: str, errors: list[str] | None = None) -> Client:
    async def note(error: Exception) -> None:
        if errors is not None:
            errors.append(str(error))

    return await nats.connect(
        server.url, user=role, password=f"secret-of-{role}", inbox_prefix=f"_INBOX_{role}", error_cb=note
    )


def settings(where: Path, name: str) -> dict[str, Any]:
    secret = where / "password"
    secret.write_text("secret-of-sidecar")
    return QUICK | {"instance": name, "nats": {"user": "sidecar", "password_file": str(secret)}}


async def operate(command: Command) -> None:
    """Every command of an operator."""
    policy = '{"pending": {"overload": 100000}}'
    assert SUBJECT in await command.good("status")
    for arguments in (
        ("status", SUBJECT),
        ("decide", "gateway", SUBJECT),
        ("decide", "consumer", SUBJECT),
        ("events",),
        ("events", SUBJECT),
        ("events", SUBJECT, "--since", "48h"),
        ("override", SUBJECT, "open", "--for", "1m"),
        ("override", SUBJECT, "auto"),
        ("policy", "get", SUBJECT),
        ("policy", "ls"),
        ("override", "ls"),
    ):
        await command.good(*arguments)
    await command.good("policy", "set", SUBJECT, "-", data=policy)
    await command.good("policy", "rm", SUBJECT)
    assert "has consumers" in await command.failed("forget", SUBJECT)


async def drain(gate: PullGate) -> None:
    """Take and acknowledge everything."""
    async with asyncio.timeout(30):
        while (await gate.consumer_info()).num_pending:
            with suppress(NatsTimeoutError):  # while nothing is granted
                for message in await gate.fetch(500, timeout=1):
                    await message.ack()
