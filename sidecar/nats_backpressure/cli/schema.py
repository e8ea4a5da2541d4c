"""`schema`: JSON Schemas of all messages, generated from the Structs that the sidecar itself encodes and decodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from msgspec import UNSET, Struct

from nats_backpressure.cli.output import print_json
from nats_backpressure.protocol import history, messages, metrics_windows, policies, reports, requests, status_alias

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
PREFIX: Final = "#/$defs/"
RECEIVED: Final = (
    *(requests.GatewayRequest, requests.ConsumerRequest, requests.ListRequest, requests.EventsRequest),
    *(requests.HistoryRequest, metrics_windows.MetricsRequest, requests.AliasRequest, requests.NoRequest),
    *(reports.GatewayReport, messages.Override),
)
"""What others send: fields with a default may be left out, or null."""
SENT: Final = (
    *(messages.Decision, messages.Status, messages.StatusList, history.Events, history.Transitions),
    *(metrics_windows.Windows, history.Recovered, history.Alerts, policies.EffectivePolicy),
    *(policies.PolicyValidation, messages.Event, messages.State, messages.Heartbeat, status_alias.AliasReply),
    messages.Forgotten,
)
"""What the sidecar sends: every field is there, but for those that are only in some of them."""


@click.command(short_help="Print the JSON Schemas of the messages.")
@click.argument("name", required=False)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the schema of each message to a file NAME.json in this directory.",
)
def schema(name: str | None, out: Path | None) -> None:
    """Print the JSON Schemas of all messages as one document; with NAME, the schema of one message (a wrong NAME
    prints the list)."""
    definitions = all_definitions()
    if name is not None and name not in definitions:
        raise click.BadParameter(f"no message has this name; there are {', '.join(sorted(message_names()))}")
    if out is not None:
        write_schemas(out, [name] if name else message_names())
    elif name is not None:
        print_json(message_schema(name))
    else:
        print_json({"$schema": DIALECT, "$defs": dict(sorted(definitions.items()))})


def message_names() -> list[str]:
    """The messages that have a schema of their own; their parts are in it."""
    return [kind.__name__ for kind in (*RECEIVED, *SENT)]


def write_schemas(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps(message_schema(name), indent=2) + "\n")


def message_schema(name: str) -> dict[str, Any]:
    """The schema of one message, with the definitions that it needs."""
    definitions = all_definitions()
    needed, open_ = set[str](), [name]
    while open_:
        if (each := open_.pop()) not in needed:
            needed.add(each)
            open_ += _references(definitions[each])
    return {"$schema": DIALECT, "$ref": PREFIX + name, "$defs": {each: definitions[each] for each in sorted(needed)}}


def all_definitions() -> dict[str, dict[str, Any]]:
    """Messages and their parts, by name."""
    received = {name: _nullable(definition) for name, definition in _definitions(RECEIVED).items()}
    sent = {name: _complete(definition, _optional(name)) for name, definition in _definitions(SENT).items()}
    return received | sent


def _definitions(kinds: tuple[type[Struct], ...]) -> dict[str, dict[str, Any]]:
    _, definitions = msgspec.json.schema_components(kinds, ref_template=PREFIX + "{name}")
    for definition in definitions.values():
        definition["description"] = cleandoc(definition.get("description", ""))
    return definitions


def _optional(name: str) -> set[str]:
    """Fields that are only in some messages of this kind."""
    parts = vars(messages) | vars(history) | vars(policies) | vars(metrics_windows) | vars(status_alias)
    kind = parts.get(name)
    return {field.encode_name for field in msgspec.structs.fields(kind) if field.default is UNSET} if kind else set()


def _complete(definition: dict[str, Any], optional: set[str]) -> dict[str, Any]:
    """The defaults are for readers of older versions; what is sent has all of its fields."""
    for field in definition["properties"].values():
        field.pop("default", None)
    return definition | {"required": [name for name in definition["properties"] if name not in optional]}


def _nullable(definition: dict[str, Any]) -> dict[str, Any]:
    """In a request, null means the default of a field that has one."""
    for field in definition.get("properties", {}).values():
        if "default" not in field:
            continue
        if "enum" in field:
            field["enum"] = [*field["enum"], None]
        elif isinstance(kind := field.get("type"), str):
            field["type"] = [kind, "null"]
    return definition


def _references(body: Any) -> Iterator[str]:
    if isinstance(body, dict):
        if isinstance(reference := body.get("$ref"), str):
            yield reference.removeprefix(PREFIX)
        body = list(body.values())
    if isinstance(body, list):
        for item in body:
            yield from _references(item)
