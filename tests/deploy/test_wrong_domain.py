"""A settings file with another JetStream domain or prefix than the rights were printed for, on a real server: doctor
and the log ask whether that one setting is right, instead of for twenty rights that nobody needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import StartServer
from tests.deploy.roles import FILE, ROLES, settings
from tests.deploy.test_leaf_node import in_domain, printed
from tests.support.command import Command
from tests.support.sidecar import Sidecar, eventually


@pytest.mark.parametrize(
    ("domain", "wrong", "asked"),
    [
        pytest.param("hub", {"js_domain": "hubb"}, "js_domain `hubb` right", id="a domain that is misspelt"),
        pytest.param(None, {"js_domain": "hub"}, "js_domain `hub` right", id="a domain where there is none"),
        pytest.param(None, {"js_api_prefix": "team.js"}, "js_api_prefix `team.js` right", id="a prefix"),
    ],
)
async def test_a_wrong_domain_under_the_printed_rights_is_asked_for_first(
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    domain: str | None,
    wrong: dict[str, str],
    asked: str,
) -> None:
    for role in ROLES:
        monkeypatch.setenv(f"BACKPRESSURE_{role.upper()}_PASSWORD", f"secret-of-{role}")
    server = await start_server(in_domain(tmp_path, domain) + printed(tmp_path) if domain else FILE.read_text())
    first = f"first: is nats.{asked}"
    file = tmp_path / "wrong.yaml"
    file.write_text(json.dumps(settings(tmp_path, "doctor", **wrong)))
    examined = await Command(server.url)("doctor", "--config", str(file), "-o", "json")
    found = [each for each in json.loads(examined.stdout)["findings"] if each["level"] not in ("ok", "unknown")]
    of_rights = [each for each in found if each["check"] in ("rights", "jetstream")]
    assert [each["check"] for each in of_rights] == ["rights", "jetstream"], found
    assert all(each["level"] == "error" and each["remedy"].startswith(first) for each in of_rights), of_rights
    assert "`hub`)" in of_rights[0]["remedy"] if domain else "(" not in of_rights[0]["remedy"].split("?")[0]
    async with Sidecar(tmp_path, server.url, settings(tmp_path, "one", **wrong)) as sidecar:

        async def said() -> bool:
            logged = [json.loads(line) for line in sidecar.log.splitlines() if line.startswith("{")]
            hints = {
                each["event"]: each["hint"] for each in logged if each["event"] in ("stage.failing", "rights.missing")
            }
            assert all(hint.startswith(first) for hint in hints.values()), hints
            return len(hints) == 2

        await eventually(said, "both lines in its log", 30)
