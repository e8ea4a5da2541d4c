"""`permissions`: the rights of each role, under the names of an installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from nats_backpressure.cli.permissions import permissions


def printed(*arguments: str) -> dict[str, Any]:
    ran = CliRunner().invoke(permissions, [*arguments, "--json"])
    assert ran.exit_code == 0, ran.output
    result: dict[str, Any] = json.loads(ran.stdout)
    return result


def test_every_subject_has_the_name_of_the_installation() -> None:
    assert "backpressure" not in json.dumps(printed("--name", "other")).lower()
    assert printed("--role", "gateway", "--name", "other")["gateway"]["publish"][1] == "other.v1.decide.gateway.>"


def test_a_consumer_has_rights_on_its_own_one_only() -> None:
    rights = printed("--role", "consumer", "--stream", "ORDERS", "--consumer", "worker")["consumer"]["publish"]
    assert rights[1:] == [
        "$JS.API.CONSUMER.INFO.ORDERS.worker",
        "$JS.API.CONSUMER.MSG.NEXT.ORDERS.worker",
        "$JS.ACK.ORDERS.worker.>",
    ]


def test_a_settings_file_gives_domain_prefixes_and_alias(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "name: team\nnats: {js_domain: hub, inbox_prefix: _INBOX_team}\n"
        "service: {status_alias: router.status, reply_prefixes: [replies.ours]}\n"
    )
    rights = printed("--role", "sidecar", "--config", str(file))["sidecar"]
    assert {"$JS.hub.API.STREAM.LIST", "$JS.hub.API.$KV.team_state.>", "replies.ours.>"} <= set(rights["publish"])
    assert {"_INBOX_team.>", "router.status"} <= set(rights["subscribe"])
    # The server of the domain maps its subjects before it checks them.
    assert {"$JS.API.STREAM.LIST", "$KV.team_state.>"} <= set(rights["publish"])


def test_a_role_that_there_is_not_is_a_usage_error() -> None:
    assert CliRunner().invoke(permissions, ["--role", "admin"]).exit_code == 2
