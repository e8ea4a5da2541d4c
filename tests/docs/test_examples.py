"""Each example of docs/protocol.md is the message that its Struct describes: no field more, none less."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from msgspec import Struct

from nats_backpressure.protocol import history, messages, reports, windows
from nats_backpressure.protocol.values import EventType
from tests.docs import examples

PAGE = (examples.FILE.parent / "protocol.md").read_text()
RECORDED: dict[str, Any] = json.loads(examples.FILE.read_text())
KINDS: dict[str, type[Struct]] = {
    "decision-gateway": messages.Decision,
    "decision-consumer": messages.Decision,
    "status": messages.Status,
    "status-list": messages.StatusList,
    "state": messages.State,
    "heartbeat": messages.Heartbeat,
    "alerts": history.Alerts,
    "recovery": history.Recovered,
    "history": history.Transitions,
    "events": history.Events,
    "metrics": windows.Windows,
    "gateway-report": reports.GatewayReport,
    **{f"event-{kind.value}": messages.Event for kind in EventType},
}
FIELDS = {
    "policy": {"subject", "matched", "policy", "sources", "consumers"},
    "validate-policy-valid": {"valid", "errors", "effective"},
    "validate-policy-invalid": {"valid", "errors", "effective"},
    "status-alias": {"success", "data"},
}
"""Of replies that have no Struct."""


@pytest.mark.parametrize("name", KINDS)
def test_an_example_has_exactly_the_fields_of_its_message(name: str) -> None:
    message = msgspec.json.decode(json.dumps(RECORDED[name]), type=KINDS[name])
    assert json.loads(msgspec.json.encode(message)) == RECORDED[name]


@pytest.mark.parametrize("name", FIELDS)
def test_an_example_of_a_reply_without_a_struct_has_its_fields(name: str) -> None:
    assert set(RECORDED[name]) == FIELDS[name]


def test_every_example_is_checked_and_shown() -> None:
    assert set(RECORDED) == {*KINDS, *FIELDS}
    assert all(f"<!-- generated: example {name} -->" in PAGE for name in RECORDED)


@pytest.mark.slow
async def test_a_run_gives_the_same_examples_with_other_values() -> None:
    assert _shape(await examples.run()) == _shape(RECORDED)


def _shape(value: Any) -> Any:
    return {name: _shape(each) for name, each in value.items()} if isinstance(value, dict) else None
