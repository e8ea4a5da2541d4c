"""`permissions`: the rights of each role, under the names of an installation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from nats_backpressure.cli.permissions import permissions
from nats_backpressure.config.nats import Nats


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


def test_with_an_api_prefix_of_its_own_both_accounts_are_printed(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("nats: {js_api_prefix: team.js}")
    lines = [each.strip() for each in CliRunner().invoke(permissions, ["--config", str(file)]).output.splitlines()]
    assert (
        '{service: "$JS.API.CONSUMER.MSG.NEXT.ROUTER.router", response_type: stream, accounts: [BACKPRESSURE]}' in lines
    )
    owner = "{service: {account: JETSTREAM, subject"
    assert f'{owner}: "$KV.backpressure_state.>"}}, to: "team.js.$KV.backpressure_state.>"}}' in lines
    assert f'{owner}: "backpressure.v1.event.>"}}}}' in lines
    assert f'{owner}: "$JS.ACK.ROUTER.router.>"}}}}' in lines


def test_a_role_that_there_is_not_is_a_usage_error() -> None:
    assert CliRunner().invoke(permissions, ["--role", "admin"]).exit_code == 2


def inboxes(rights: dict[str, Any]) -> set[str]:
    return {each for kind in ("publish", "subscribe") for each in rights[kind] if each.startswith("_INBOX")}


def test_each_role_has_the_inboxes_of_its_own_prefix_alone() -> None:
    printed_rights = printed()
    for role in ("gateway", "consumer", "operator"):
        assert inboxes(printed_rights[role]) == {f"_INBOX_{role}.>"}
        assert printed_rights[role]["inbox_prefix"] == f"_INBOX_{role}"
        assert f"_INBOX_{role}.>" in printed_rights["sidecar"]["publish"]
    assert printed_rights["sidecar"]["inbox_prefix"] == Nats().inbox_prefix == "_INBOX_sidecar"
    assert "_INBOX_sidecar.>" not in printed_rights["sidecar"]["publish"]


def test_another_inbox_prefix_is_that_of_all_who_ask() -> None:
    printed_rights = printed("--inbox-prefix", "_INBOX_shop")
    for role in ("gateway", "consumer", "operator"):
        assert inboxes(printed_rights[role]) == {"_INBOX_shop.>"}
    assert {"_INBOX.>", "_INBOX_shop.>"} <= set(printed_rights["sidecar"]["publish"])
    assert "_INBOX_sidecar.>" in printed_rights["sidecar"]["subscribe"]


@pytest.mark.parametrize("prefix", ["$JS.API", "_INBOX_*", "_INBOX.>", "orders", ""])
def test_an_inbox_prefix_that_would_get_no_answer_is_a_usage_error(prefix: str) -> None:
    assert CliRunner().invoke(permissions, ["--inbox-prefix", prefix]).exit_code == 2
