"""Loads YAML as plain values with their line numbers. Refuses what could make the value larger than its text."""

from __future__ import annotations

from typing import Any, Final, cast

import yaml

from nats_backpressure.policy.validation import Problems, join_path, shorten

LARGEST_FILE: Final = 1 << 20
"""Bytes."""
DEEPEST: Final = 32
"""Levels of nesting in a file; ours need six."""
# YAML takes some plain text for one of the last three; here it stays text.
_KINDS: Final = ("null", "bool", "int", "float", "str", "seq", "map", "timestamp", "merge", "value")


class _UnsupportedError(yaml.MarkedYAMLError):
    """YAML that is valid and not supported here."""


class _Loader(yaml.SafeLoader):
    """Composes nodes without aliases, and not deeper than DEEPEST."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = cast(Any, self).peek_event().start_mark
        if self.check_event(yaml.AliasEvent):
            raise _UnsupportedError(
                problem="aliases (`*name`) are not supported; write the value out", problem_mark=mark
            )
        if self._depth >= DEEPEST:
            raise _UnsupportedError(problem=f"is nested deeper than {DEEPEST} levels", problem_mark=mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def load_yaml(data: bytes, lines: dict[str, int], problems: Problems) -> object:
    """The plain value of a YAML text, None for an empty or invalid one; adds the line of each path to `lines`."""
    if len(data) > LARGEST_FILE:
        problems.add("", f"is larger than {LARGEST_FILE:,} bytes")
        return None
    try:
        loader = _Loader(data.decode("utf-8-sig"))
        node = loader.get_single_node()
        return None if node is None else _plain(loader, node, "", lines, problems)
    except UnicodeDecodeError as error:
        lines[""] = data.count(b"\n", 0, error.start) + 1
        problems.add("", "is not UTF-8 text")
    except yaml.reader.ReaderError as error:
        lines[""] = data.decode("utf-8-sig").count("\n", 0, error.position) + 1
        problems.add("", "holds a control character")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        lines[""] = mark.line + 1 if mark else 1
        unsupported = isinstance(error, _UnsupportedError)
        problems.add("", str(error.problem) if unsupported else _syntax(error.problem or "", error.context or ""))
    return None


def _syntax(problem: str, context: str) -> str:
    if "\\t" in problem:
        return "has a tab for indentation; YAML needs spaces"
    # PyYAML splits some of its sentences in two: "expected a single document", "but problems another".
    return f"is not YAML: {f'{context}, ' if problem.startswith('but ') else ''}{problem}".replace("\n", " ")


def _plain(loader: _Loader, node: yaml.Node, path: str, lines: dict[str, int], problems: Problems) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if node.tag.removeprefix("tag:yaml.org,2002:") not in _KINDS:
        problems.add(path, "tags (`!name`) are not supported; remove it")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, item, f"{path}[{i}]", lines, problems) for i, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(loader, node, path, problems)
    plain: dict[Any, Any] = {}
    for key_node, item in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            problems.add(path, "keys must be text")
            continue
        key = _scalar(loader, key_node, path, problems)
        here = join_path(path, shorten(key)) if isinstance(key, str) else path
        if key in plain:
            problems.add(here, f"is set twice, again in line {key_node.start_mark.line + 1}; remove one of them")
            continue
        lines.setdefault(here, key_node.start_mark.line + 1)
        plain[key] = _plain(loader, item, here, lines, problems)
    return plain


def _scalar(loader: _Loader, node: yaml.Node, path: str, problems: Problems) -> str | int | float | bool | None:
    """Only the kinds of value that JSON has: a date is text, and so is 1:30, which YAML takes for ninety."""
    kind = node.tag.rpartition(":")[2]
    text = str(node.value)
    if kind not in ("null", "bool", "int", "float") or ":" in text:
        return text
    try:
        value: str | int | float | bool | None = getattr(loader, f"construct_yaml_{kind}")(node)
    except (ValueError, KeyError, OverflowError):
        problems.add(path, f"is not a valid {kind}; for text put it in quotes")
        return None
    return value
