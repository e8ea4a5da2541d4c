"""`schema`: JSON Schemas of everything that goes over the wire, generated from what the sidecar itself reads."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import click
import msgspec
from msgspec import Struct

from nats_backpressure.cli.output import print_json
from nats_backpressure.protocol import history, messages, reports, requests, windows

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MODULES = (messages, history, windows, requests, reports)
PREFIX = "#/$defs/"


@click.command()
@click.argument("name", required=False)
def schema(name: str | None) -> None:
    """Print the JSON Schemas of the wire's messages as one document; with NAME, that of one message."""
    _, found = msgspec.json.schema_components(list(_messages()), ref_template=PREFIX + "{name}")
    short = {full: full.rpartition(".")[2] if _public(full) else full.replace(".", "_") for full in found}
    defs = {short[full]: _renamed(body, short) for full, body in found.items()}
    if name is None:
        print_json({"$schema": DIALECT, "$defs": dict(sorted(defs.items()))})
        return
    if name not in defs:
        raise click.BadParameter(f"no message of that name; there are {', '.join(sorted(map(_name, _messages())))}")
    needed = _needed(name, defs)
    print_json({"$schema": DIALECT, "$ref": PREFIX + name, "$defs": {each: defs[each] for each in sorted(needed)}})


def _messages() -> Iterator[type[Struct]]:
    """What the wire's modules define themselves."""
    for module in MODULES:
        yield from (kind for kind in vars(module).values() if _is_message(kind, module))


def _is_message(found: object, module: ModuleType) -> bool:
    return isinstance(found, type) and issubclass(found, Struct) and found.__module__ == module.__name__


def _name(kind: type[Struct]) -> str:
    return kind.__name__


def _public(full: str) -> bool:
    """Where a name stands for two things, it is the wire's; the stored record's own parts keep their whole name."""
    return ".core." not in full


def _renamed(body: Any, short: dict[str, str]) -> Any:
    if isinstance(body, dict):
        whole = {key: _renamed(value, short) for key, value in body.items()}
        if isinstance(ref := whole.get("$ref"), str):
            whole["$ref"] = PREFIX + short[ref.removeprefix(PREFIX)]
        return whole
    return [_renamed(item, short) for item in body] if isinstance(body, list) else body


def _needed(name: str, defs: dict[str, Any]) -> set[str]:
    """It, and all that it refers to."""
    found, ahead = set[str](), [name]
    while ahead:
        if (each := ahead.pop()) not in found:
            found.add(each)
            ahead += _refs(defs[each])
    return found


def _refs(body: Any) -> Iterator[str]:
    if isinstance(body, dict):
        if isinstance(ref := body.get("$ref"), str):
            yield ref.removeprefix(PREFIX)
        body = list(body.values())
    if isinstance(body, list):
        for item in body:
            yield from _refs(item)
