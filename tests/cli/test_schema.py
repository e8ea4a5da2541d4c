"""`schema`: what is on the wire, for programs that read it."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner

from nats_backpressure.cli.schema import schema


def printed(*arguments: str) -> dict[str, Any]:
    ran = CliRunner().invoke(schema, arguments)
    assert ran.exit_code == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def refs(body: object) -> set[str]:
    if isinstance(body, dict):
        own = {body["$ref"]} if isinstance(body.get("$ref"), str) else set()
        return own.union(*map(refs, body.values()))
    return set().union(*map(refs, body)) if isinstance(body, list) else set()


def test_every_message_is_there_under_its_name_and_every_reference_leads_somewhere() -> None:
    found = printed()
    assert {"Decision", "Status", "StatusList", "Event", "GatewayRequest", "ConsumerRequest"} <= found["$defs"].keys()
    assert refs(found) == {ref for ref in refs(found) if ref.removeprefix("#/$defs/") in found["$defs"]}
    assert {"action", "retry_after_seconds", "state_keys"} <= found["$defs"]["Decision"]["properties"].keys()


def test_one_message_comes_with_what_it_needs_and_no_more() -> None:
    found = printed("Event")
    assert found["$ref"] == "#/$defs/Event"
    assert {"#/$defs/" + name for name in found["$defs"]} == refs(found)
