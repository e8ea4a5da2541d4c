"""deploy/nats/users.conf on a real server: each program does all of its work with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from nats_backpressure.adapters.nats.permissions import ROLES as RIGHTS
from nats_backpressure.adapters.nats.permissions import Installation
from nats_backpressure.cli import main
from nats_backpressure.protocol.patterns import covers
from tests.deploy.roles import API, FILE
from tests.deploy.work import everybody_works
from tests.support.command import Command
from tests.support.servers import NatsServer
from tests.support.sidecar import Sidecar


def test_the_file_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(main, ["permissions"])
    assert printed.exit_code == 0 and FILE.read_text() == printed.stdout, "run `make docs`"


@pytest.mark.slow
async def test_each_does_all_of_its_work_without_one_violation(
    guarded: NatsServer, replicas: list[Sidecar], command: Command, tmp_path: Path
) -> None:
    await everybody_works(guarded, replicas, command, tmp_path / "recording")
    assert unused(guarded.log) == RARELY_USED
    as_sidecar = f"nats://sidecar:secret-of-sidecar@127.0.0.1:{guarded.port}"
    examined = await command("doctor", "-o", "json", NATS_URL=as_sidecar)
    findings = json.loads(examined.stdout)["findings"]
    assert {each["check"] for each in findings if each["level"] != "ok"} - {"version"} == {"sampling"}, findings
    assert "Violation" not in guarded.log


def unused(log: str) -> set[str]:
    """The subjects of the file that nobody has published or subscribed to, by the server's trace."""
    used = {kind: set(re.findall(rf"<<- \[H?{kind} (\S+)", log)) for kind in ("PUB", "SUB")}
    listed = [rights(Installation()) for rights in RIGHTS.values()]
    pairs = [("PUB", each) for role in listed for each in role.publish]
    pairs += [("SUB", each) for role in listed for each in role.subscribe]
    return {pattern for kind, pattern in pairs if not any(covers(pattern, subject) for subject in used[kind])}


RARELY_USED = {
    "$JS.API.STREAM.NAMES",  # to name the stream that holds our subjects already
    f"{API}.DIRECT.GET.BACKPRESSURE_EVENTS",  # for more events than are read one by one
    "_R_.>",  # requests of other accounts
    "_INBOX.>",  # requests of clients that set no inbox prefix
    *(f"$SRV.{verb}{tail}" for verb in ("PING", "INFO", "STATS") for tail in ("", ".backpressure", ".backpressure.*")),
} - {"$SRV.PING.backpressure"}
"""What the test does not do: other ways of asking for the service's figures."""
