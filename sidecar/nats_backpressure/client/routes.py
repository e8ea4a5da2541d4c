"""Route and Routes: which requests of a gateway belong to which subject, by path and method. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

from nats_backpressure.client.shedder import NORMAL
from nats_backpressure.client.subject_template import template_names
from nats_backpressure.protocol.values import PRIORITIES, Priority

Scope = MutableMapping[str, Any]
"""An ASGI scope."""
CONVERTORS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": (r"[^/]+", str),
    "path": (r".*", str),
    "int": (r"[0-9]+", int),
    "float": (r"[0-9]+(?:\.[0-9]+)?", float),
    "uuid": (r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}", UUID),
}
"""What `{name:convertor}` matches, and the type of its value: those of Starlette."""
_PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")
_METHOD = re.compile(r"[A-Za-z][A-Za-z-]*")


@dataclass(frozen=True)
class Route:
    """Which requests belong to which subject: `{name}` in the path matches one segment, `{name:path}` the rest, and
    `{name:int}`, `float` and `uuid` as in Starlette. The path is the one that the application's own routes have, after
    `root_path` and mounts.

    `subject` may use them: `orders.{tenant}.created`, with the dots that a value has. Where a value makes no plain
    subject (blanks, `*`, `>`, empty), the strictest watched state decides that the template overlaps. `subject` and
    `priority` may also be functions of the ASGI scope, which has `path_params`. Believe a priority that a caller sends
    only as far as you trust the caller.

    Raises ValueError for what could never match.
    """

    path: str
    subject: str | Callable[[Scope], str | None]
    methods: Sequence[str] = ()
    """Empty: all. `GET` includes `HEAD`."""
    priority: Priority | Callable[[Scope], str] = NORMAL

    def __post_init__(self) -> None:
        compiled = _compile(self.path)
        if isinstance(self.methods, str) or not all(_METHOD.fullmatch(method) for method in self.methods):
            raise ValueError(f'methods of route {self.path}: a list such as ["POST"] is expected, not {self.methods!r}')
        if not callable(self.priority):
            checked_priority(self.priority)
        if isinstance(self.subject, str) and (missing := set(template_names(self.subject)) - set(compiled.convertors)):
            raise ValueError(f"route {self.path}: no {{{min(missing)}}}, which its subject {self.subject!r} names")

    def priority_of(self, scope: Scope) -> str:
        return self.priority if isinstance(self.priority, str) else self.priority(scope)


class Match(NamedTuple):
    """A route, and the values in the path."""

    route: Route
    parameters: dict[str, Any]


class _Compiled(NamedTuple):
    pattern: re.Pattern[str]
    convertors: dict[str, str]

    def match(self, path: str) -> dict[str, Any] | None:
        if (match := self.pattern.match(path)) is None:
            return None
        return {name: _converted(self.convertors[name], value) for name, value in match.groupdict().items()}


class Routes:
    """Finds the first route of a path and a method."""

    def __init__(self, routes: Iterable[Route], exempt: Iterable[str]) -> None:
        """`exempt`: paths that no route is looked for. Raises ValueError, as Route does."""
        self._routes = [(_compile(route.path), _methods(route), route) for route in routes]
        self._exempt = [_compile(path) for path in exempt]

    def is_exempt(self, path: str) -> bool:
        return any(compiled.match(path) is not None for compiled in self._exempt)

    def match(self, path: str, method: str) -> Match | None:
        """The first route, with or without a slash at the end: routers redirect from one to the other, or take both."""
        return self._match(path, method) or self._match(path.rstrip("/") if path.endswith("/") else f"{path}/", method)

    def _match(self, path: str, method: str) -> Match | None:
        for compiled, methods, route in self._routes:
            if (not methods or method in methods) and (parameters := compiled.match(path)) is not None:
                return Match(route, parameters)
        return None


def route_path(scope: Scope) -> str:
    """The path as the application's routes have it: without the prefix of a proxy or of the mount."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    return (path[len(root) :] or "/") if root and (path == root or path.startswith(f"{root}/")) else path


def _converted(convertor: str, value: str) -> Any:
    try:
        return CONVERTORS[convertor][1](value)
    except ValueError:  # for example an integer with more digits than Python converts
        return value


def checked_priority(priority: Priority) -> Priority:
    """Raises ValueError for one that there is not."""
    if priority not in PRIORITIES:
        raise ValueError(f"the priority {priority!r} is none of {', '.join(PRIORITIES)}")
    return priority


def _methods(route: Route) -> frozenset[str]:
    methods = frozenset(method.upper() for method in route.methods)
    return methods | {"HEAD"} if "GET" in methods else methods


def _compile(path: str) -> _Compiled:
    """Raises ValueError for a path that could never match."""
    parameters = list(_PARAMETER.finditer(path))
    if not path.startswith("/"):
        raise ValueError(f"route {path!r}: a path begins with `/`")
    if set(_PARAMETER.sub("", path)) & set("{}*?#"):
        raise ValueError(f"route {path}: {{name}} stands for one segment and {{name:path}} for the rest, nothing else")
    convertors = {match[1]: match[2] or "str" for match in parameters}
    if len(convertors) < len(parameters):
        raise ValueError(f"route {path}: each name once")
    if unknown := set(convertors.values()) - set(CONVERTORS):
        raise ValueError(f"route {path}: {', '.join(sorted(unknown))} is none of {', '.join(CONVERTORS)}")
    pieces, end = [], 0
    for match in parameters:
        pieces += [re.escape(path[end : match.start()]), f"(?P<{match[1]}>{CONVERTORS[convertors[match[1]]][0]})"]
        end = match.end()
    return _Compiled(re.compile("".join(pieces) + re.escape(path[end:]) + "$"), convertors)  # `$` as Starlette has it
