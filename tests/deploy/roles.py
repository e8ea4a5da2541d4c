"""The users of deploy/nats/users.conf on a real server: their logins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client

from tests.support.servers import NatsServer
from tests.support.sidecar import QUICK

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


def settings(where: Path, name: str, **nats: Any) -> dict[str, Any]:
    secret = where / "password"
    secret.write_text("secret-of-sidecar")
    return QUICK | {"instance": name, "nats": {"user": "sidecar", "password_file": str(secret), **nats}}
