"""`schema`: JSON Schemas of the messages, for programs that send or read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from msgspec import Struct

from nats_backpressure.cli.schema import all_definitions, message_names, message_schema, schema
from nats_backpressure.protocol.metrics_windows import MetricsRequest
from nats_backpressure.protocol.requests import ConsumerRequest, EventsRequest, GatewayRequest, ListRequest

DOCS = Path(__file__).parent.parent.parent / "docs" / "schemas"


def run_schema(*arguments: str) -> str:
    ran = CliRunner().invoke(schema, arguments)
    assert ran.exit_code == 0, ran.stderr
    return ran.stdout


def references(body: object) -> set[str]:
    if isinstance(body, dict):
        own = {body["$ref"]} if isinstance(body.get("$ref"), str) else set()
        return own.union(*map(references, body.values()))
    return set().union(*map(references, body)) if isinstance(body, list) else set()


def fields() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, definition in all_definitions().items():
        for field, body in definition.get("properties", {}).items():
            yield f"{name}.{field}", body


def test_every_message_is_there_under_its_name_and_every_reference_leads_somewhere() -> None:
    document = json.loads(run_schema())
    assert {"Decision", "Status", "StatusList", "Event", "GatewayRequest", "ConsumerRequest"} <= set(document["$defs"])
    assert {ref.removeprefix("#/$defs/") for ref in references(document)} <= document["$defs"].keys()
    assert {"action", "retry_after_seconds", "state_keys"} <= document["$defs"]["Decision"]["properties"].keys()


@pytest.mark.parametrize("name", message_names())
def test_one_message_comes_with_what_it_needs_and_no_more(name: str) -> None:
    document = json.loads(run_schema(name))
    assert document["$ref"] == f"#/$defs/{name}"
    assert {f"#/$defs/{each}" for each in document["$defs"]} == references(document)
    Draft202012Validator.check_schema(document)


def test_a_message_that_is_not_there_is_an_error_that_lists_those_that_are() -> None:
    ran = CliRunner().invoke(schema, ["Nothing"])
    assert ran.exit_code == 2
    assert "Decision" in ran.stderr


@pytest.mark.parametrize(("field", "body"), list(fields()), ids=lambda one: one if isinstance(one, str) else "")
def test_every_field_has_a_description(field: str, body: dict[str, Any]) -> None:
    assert body.get("description", "").endswith("."), "a sentence"


def test_every_message_has_a_description_and_no_internal_name() -> None:
    for name, definition in all_definitions().items():
        assert name.isalnum() and name[0].isupper()
        assert definition["description"] or name == "EventType"
    assert all_definitions()["State"]["properties"]["record"]["description"].startswith("Ours, do not read")


def test_values_times_and_bounds_are_closed() -> None:
    decision, event = all_definitions()["Decision"], all_definitions()["Event"]
    assert decision["properties"]["action"]["enum"] == ["continue", "reject", "throttle"]
    assert event["properties"]["timestamp"]["format"] == "date-time"
    assert (decision["properties"]["admit_ratio"]["minimum"], decision["properties"]["admit_ratio"]["maximum"]) == (
        0,
        1,
    )
    assert set(decision["required"]) == set(decision["properties"])
    assert set(event["properties"]) - set(event["required"]) == {"lost", "alert", "errors", "policy_revision"}


@pytest.mark.parametrize("kind", [GatewayRequest, ConsumerRequest, ListRequest, EventsRequest, MetricsRequest])
def test_null_is_valid_in_a_request_and_so_is_a_whole_float(kind: type[Struct]) -> None:
    schema_of = Draft202012Validator(message_schema(kind.__name__))
    fields_of = msgspec.structs.fields(kind)
    schema_of.validate({field.name: None for field in fields_of})
    schema_of.validate({field.name: float(field.default) for field in fields_of if type(field.default) is int})


def test_the_files_in_docs_are_what_is_printed(tmp_path: Path) -> None:
    run_schema("--out", str(tmp_path))
    here = {path.name: path.read_text() for path in DOCS.glob("*.json")}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == here, "run `make docs`"
    assert json.loads(here["Event.json"]) == message_schema("Event")
