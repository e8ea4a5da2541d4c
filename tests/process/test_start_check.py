"""A sidecar that starts logs what the checks find, on a real server of an operator: once, and also where it can read
nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nats
import pytest

from nats_backpressure.doctor.at_start import AFTER, AT_LAST
from tests.conftest import StartServer
from tests.support.jwts import credentials_of_team, trusting
from tests.support.sidecar import UNHURRIED, Sidecar, eventually

SMALL = {"mem_storage": 1_000_000, "disk_storage": 60_000, "streams": 10, "consumer": 100}
WITHIN = 30.0


def found(sidecar: Sidecar) -> dict[str, list[dict[str, Any]]]:
    """What was logged by each check."""
    by_check: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, sidecar.log.splitlines()):
        if line["event"].startswith("doctor."):
            by_check.setdefault(line.get("check", line["event"]), []).append(line)
    return by_check


@pytest.mark.parametrize(
    ("limits", "checks"),
    [
        pytest.param(SMALL, {"account", "jwt"}, id="an account that is nearly full"),
        pytest.param({}, {"jwt"}, id="an account without JetStream", marks=pytest.mark.slow),
    ],
)
async def test_what_is_wrong_is_logged_once(
    start_server: StartServer, tmp_path: Path, limits: dict[str, int], checks: set[str]
) -> None:
    server = await start_server(trusting(**limits))
    credentials = credentials_of_team(tmp_path / "user.creds", exp=int(time.time()) + 3600)
    if limits:
        nc = await nats.connect(server.url, user_credentials=credentials)
        await nc.jetstream().add_stream(name="ORDERS", subjects=["orders"])
        await nc.jetstream().add_consumer("ORDERS", durable_name="router")
        await nc.close()
    settings = UNHURRIED | {"nats": {"servers": [server.url], "credentials_file": credentials}}
    async with Sidecar(tmp_path, None, settings) as sidecar:

        async def is_logged() -> bool:
            return checks <= found(sidecar).keys()

        await eventually(is_logged, f"lines of {checks}", AT_LAST + AFTER + WITHIN)
        lines = found(sidecar)
        assert {check: len(each) for check, each in lines.items() if check != "version"} == dict.fromkeys(checks, 1)
        assert "expires at" in lines["jwt"][0]["problem"]
        assert not limits or "of 60,000 bytes of storage" in lines["account"][0]["problem"]
