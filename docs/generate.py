"""Writes the generated parts of the pages in docs/, from the code and the results of `make bench`: `make docs`.
A test keeps page and code equal.

A page marks such a part with `<!-- generated: NAME ARGUMENT... -->` and `<!-- end -->`; NAME is a function in PARTS.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import click
import yaml
from msgspec import NODEFAULT, UNSET, Struct, to_builtins
from msgspec import inspect as types

from benchmarks.page import performance, plots, scale
from nats_backpressure.adapters.prometheus import definitions
from nats_backpressure.adapters.prometheus.dropped import DROPPED
from nats_backpressure.cli import COMMANDS
from nats_backpressure.cli.options import CONNECTION_OPTIONS
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.signals.diagnosis import RULES
from nats_backpressure.doctor.examination import CHECKS

P: Final = definitions.P
DOCS: Final = Path(__file__).parent
MARKED: Final = re.compile(r"(<!-- generated: ([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
ENVIRONMENT: Final = {
    "nats.servers": "NATS_URL",
    "nats.credentials_file": "NATS_CREDS",
    "nats.nkey_seed_file": "NATS_NKEY",
    "nats.nkey_seed": "NATS_NKEY",
    "nats.user": "NATS_USER",
    "nats.password": "NATS_PASSWORD",
    "nats.token": "NATS_TOKEN",
    "nats.tls.ca_file": "NATS_CA",
    "nats.tls.cert_file": "NATS_CERT",
    "nats.tls.key_file": "NATS_KEY",
}
"""Setting -> the environment variable that wins over it; a test compares the names with `config.nats.VARIABLES`."""
WIDTH: Final = 120
"""Columns of an example."""
ELSEWHERE: Final = {"policies": "`[]`"}
"""Settings with a page of their own -> the default to show."""


def fill(page: str) -> str:
    """The page with every marked part generated again. Raises KeyError for an unknown NAME."""

    def part(match: re.Match[str]) -> str:
        name, *arguments = match[2].split()
        return f"{match[1]}{PARTS[name](*arguments)}\n{match[4]}"

    return MARKED.sub(part, page)


def table(header: str, rows: Iterable[Iterable[str]]) -> str:
    columns = header.split(", ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def fields(path: str, *left_out: str) -> str:
    """A table of the fields of one Struct, given as `module:Class`: name, default, type with bounds, description."""
    module, _, name = path.partition(":")
    cls = getattr(import_module(f"nats_backpressure.{module}"), name)
    rows = ([f"`{f.encode_name}`", _default(f), _type(f.type), text] for f, text in _fields(cls, left_out))
    return table("field, default, type, meaning", rows)


def message(path: str, *left_out: str) -> str:
    """A table of the fields of a message, given as `module:Class`: name, type with bounds, description."""
    module, _, name = path.partition(":")
    cls = getattr(import_module(f"nats_backpressure.{module}"), name)
    rows = ([f"`{f.encode_name}`", _type(f.type) + _absent(f), text] for f, text in _fields(cls, left_out))
    return table("field, type, meaning", rows)


def _absent(field: types.Field) -> str:
    return "; may be absent" if field.default is UNSET else ""


def example(name: str) -> str:
    """One example of docs/examples.json, as JSON."""
    examples = json.loads((DOCS / "examples.json").read_text())
    return f"```json\n{_json(examples[name])}\n```"


def _json(value: Any, indent: int = 0) -> str:
    """JSON with everything on one line that fits into WIDTH."""
    flat = json.dumps(value, ensure_ascii=False)
    if indent + len(flat) <= WIDTH or not isinstance(value, dict | list) or not value:
        return flat
    inner = indent + 1
    if isinstance(value, list):
        return "[" + f",\n{' ' * inner}".join(_json(each, inner) for each in value) + "]"
    lines: list[str] = []
    for name, each in value.items():
        member = f"{json.dumps(name)}: "
        text = member + _json(each, inner + len(member) if not isinstance(each, dict | list) else inner)
        if lines and "\n" not in lines[-1] + text and inner + len(lines[-1]) + len(text) + 2 <= WIDTH:
            lines[-1] += f", {text}"
        else:
            lines.append(text)
    return "{" + f",\n{' ' * inner}".join(lines) + "}"


def settings() -> str:
    """All settings in one table, by their dotted path."""
    return table("setting, default, type, environment, meaning", _settings(Settings, ""))


def _settings(cls: type[Struct], path: str) -> Iterator[list[str]]:
    for field, text in _fields(cls):
        name = path + field.encode_name
        kind = field.type
        if isinstance(kind, types.StructType):
            yield [f"**`{name}`**", "", "section", "", text]
            yield from _settings(kind.cls, f"{name}.")
            continue
        variable = f"`{ENVIRONMENT[name]}`" if name in ENVIRONMENT else ""
        only = isinstance(_without_null(kind), types.CustomType)
        shown = "" if only else ELSEWHERE.get(name) or _default(field)
        yield [f"`{name}`", shown, "environment only" if only else _type(kind, name in ELSEWHERE), variable, text]
        item = kind.item_type if isinstance(kind, types.VarTupleType) else None
        if isinstance(item, types.StructType) and name not in ELSEWHERE:
            yield from _settings(item.cls, f"{name}[].")


def _fields(cls: type[Struct], left_out: Iterable[str] = ()) -> Iterator[tuple[types.Field, str]]:
    """The fields of a Struct with their descriptions. Raises LookupError for a field that has none."""
    info = types.type_info(cls)
    assert isinstance(info, types.StructType)
    texts = {name: text for each in reversed(cls.__mro__) for name, text in _docstrings(each).items()}
    for field in info.fields:
        if field.name in left_out:
            continue
        text = _description(field.type) or texts.get(field.name)
        if text is None:
            raise LookupError(f"{cls.__module__}.{cls.__name__}.{field.name} has no description")
        yield field, " ".join(text.split())


def _description(kind: types.Type) -> str | None:
    """The text of `Meta(description=...)`, if there is one."""
    extra = (kind.extra_json_schema or {}) if isinstance(kind, types.Metadata) else {}
    return extra.get("description")


@cache
def _docstrings(cls: type) -> dict[str, str]:
    """The attribute docstrings of a class: the string that follows a field."""
    if not cls.__module__.startswith("nats_backpressure."):
        return {}
    body = next(
        node.body
        for node in ast.walk(_parsed(cls.__module__))
        if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    return {
        field.target.id: text.value.value
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(inspect.getsource(import_module(module)))


def _plain(kind: types.Type) -> types.Type:
    return _plain(kind.type) if isinstance(kind, types.Metadata) else kind


def _without_null(kind: types.Type) -> types.Type:
    while isinstance(kind, types.Metadata):
        kind = kind.type
    if isinstance(kind, types.UnionType):
        others = [each for each in kind.types if not isinstance(each, types.NoneType)]
        return others[0] if len(others) == 1 else kind
    return kind


def _type(kind: types.Type, elsewhere: bool = False) -> str:
    """A type with its bounds, in words."""
    match kind:
        case types.Metadata(type=inner, extra_json_schema=extra):
            return "time" if (extra or {}).get("format") == "date-time" else _type(inner, elsewhere)
        case types.DateTimeType():
            return "time (with its zone)"
        case types.UnionType(types=each):
            if any(isinstance(_plain(one), types.FloatType) for one in each):  # an integer is a number
                each = tuple(one for one in each if not isinstance(_plain(one), types.IntType))
            return " or ".join("null" if isinstance(one, types.NoneType) else _type(one) for one in each)
        case types.BoolType():
            return "boolean"
        case types.IntType():
            return "integer" + _bounds(kind)
        case types.FloatType():
            return "number" + _bounds(kind)
        case types.StrType(pattern=pattern) if pattern:
            return f"text (`{pattern}`)"
        case types.StrType(max_length=longest):
            return "text" if longest is None else f"text (at most {longest:,} characters)"
        case types.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case types.EnumType(cls=cls):
            return ", ".join(f"`{each.value}`" for each in cls)
        case types.VarTupleType(item_type=item, max_length=most) | types.ListType(item_type=item, max_length=most):
            bound = "" if most is None else f" (at most {most:,})"
            return f"list{bound} of {'object' if elsewhere else _type(item)}"
        case types.DictType(value_type=value):
            return f"object of {_type(value)}"
        case types.StructType(cls=cls):
            return f"`{cls.__name__}`"
        case _:
            return "any"


def _bounds(kind: types.IntType | types.FloatType) -> str:
    least = kind.ge if kind.ge is not None else kind.gt
    if least is None or kind.le is None:
        return "" if least is None else f" (at least {_number(least)})"
    above = "above " if kind.gt is not None else ""
    return f" ({above}{_number(least)} to {_number(kind.le)})"


def _number(value: float) -> str:
    return f"{value:g}".replace("e+", "e") if value >= 1e12 or value != int(value) else f"{int(value):,}"


def _default(field: types.Field) -> str:
    if field.default_factory is not NODEFAULT:
        return "the host name" if field.name == "instance" else "`{}`"
    if field.default is NODEFAULT:
        return "required"
    return f"`{_shown(to_builtins(field.default))}`"


def _shown(value: Any) -> str:
    """A value as YAML writes it in one line."""
    if isinstance(value, dict):
        inner = ", ".join(f"{name}: {_shown(each)}" for name, each in value.items() if each is not None)
        return f"{{{inner}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return value if isinstance(value, str) and value != "*" else json.dumps(value)


def commands() -> str:
    """Every command: its arguments, its own options, and what it is for."""
    return table("command, options, what for", (row for name in COMMANDS for row in _commands(name, _command(name))))


def _command(name: str) -> click.Command:
    command: click.Command = getattr(import_module(f"nats_backpressure.cli.{name}"), name)
    return command


def _commands(name: str, command: click.Command) -> Iterator[list[str]]:
    if isinstance(command, click.Group):
        for each, inner in command.commands.items():
            yield from _commands(f"{name} {each}", inner)
        return
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    arguments = [param.make_metavar(click.Context(command)) for param in shown if isinstance(param, click.Argument)]
    options = [
        f"`{max(param.opts, key=len)}`"
        for param in shown
        if isinstance(param, click.Option) and param.name not in (*CONNECTION_OPTIONS, "output", "as_json")
    ]
    yield [f"`{' '.join([name, *arguments])}`", ", ".join(options), command.get_short_help_str(200)]


def checks() -> str:
    """Every check of `doctor`: its name, what it is about, and whether a sidecar that starts runs it."""
    rows = ([f"`{each.name}`", inspect.getdoc(each.find) or "", each.not_at_start or "yes"] for each in CHECKS)
    return table("check, finds out, at a start", rows)


def metrics() -> str:
    """Every metric of `/metrics`: its name, type, labels and help text."""
    spent, spent_text, spent_labels = definitions.TIME_IN_STATUS
    rows = [
        *((name, "gauge", labels, text) for name, (text, labels) in definitions.GAUGES.items()),
        (spent + "_total", "counter", spent_labels, spent_text),
        *((f"{P}{name}_total", "counter", labels, text) for name, (text, labels) in definitions.COUNTERS.items()),
        *((P + name, "histogram", (), text) for name, (text, _) in definitions.HISTOGRAMS.items()),
    ]
    return table(
        "metric, type, labels, meaning",
        ([f"`{name}`", kind, ", ".join(f"`{each}`" for each in labels), text] for name, kind, labels, text in rows),
    )


def process_metrics() -> str:
    """The metrics of the process, under the names of all exporters."""
    metrics = definitions.PROCESS.items()
    rows = ([_code(name), kind, ", ".join(map(_code, labels)), text] for name, (kind, text, labels) in metrics)
    return table("metric, type, labels, meaning", rows)


def _code(name: str) -> str:
    return f"`{name}`"


def dropped() -> str:
    """What `dropped_total` counts."""
    return table("what, what it means, what to do", ([_code(what), *texts] for what, texts in DROPPED.items()))


def alerts() -> str:
    """A section for each alert of deploy/prometheus/rules.yaml, with the heading that its `runbook_url` leads to."""
    groups = yaml.safe_load((DOCS.parent / "deploy/prometheus/rules.yaml").read_text())["groups"]
    return "\n\n".join(_alert(rule) for group in groups for rule in group["rules"] if "alert" in rule)


def _alert(rule: dict[str, Any]) -> str:
    texts, severity = rule["annotations"], rule["labels"]["severity"]
    after = "at once" if rule["for"] == "0m" else f"after {rule['for']}"
    return (
        f"### {rule['alert']}\n\n{texts['summary']} *{severity}, {after}*\n\n"
        f"- When: `{rule['expr']}`\n- What it costs: {texts['cost']}\n- What to do: {texts['action']}"
    )


def rule(name: str) -> str:
    """The sentence of the rule that finds a diagnosis."""
    text = next(holds.__doc__ for diagnosis, holds in RULES if diagnosis == name)
    return "> " + " ".join((text or "").split())


PARTS: Final[dict[str, Callable[..., str]]] = {
    "alerts": alerts,
    "dropped": dropped,
    "checks": checks,
    "commands": commands,
    "example": example,
    "fields": fields,
    "message": message,
    "metrics": metrics,
    "performance": performance,
    "process_metrics": process_metrics,
    "rule": rule,
    "scale": scale,
    "settings": settings,
}


def main() -> None:
    contents = {page: fill(page.read_text()) for page in sorted(DOCS.glob("*.md"))}
    contents |= {DOCS / name: drawing for name, drawing in plots().items()}
    for path, text in contents.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stdout.write(f"{path.relative_to(DOCS.parent)}: written\n")


if __name__ == "__main__":
    main()
