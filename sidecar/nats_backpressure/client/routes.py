"""Route and Routes: which requests of a gateway belong to which subject, by path and method. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nats_backpressure.client.not_async import check_not_async
from nats_backpressure.client.path_pattern import PathPattern
from nats_backpressure.client.shedder import NORMAL
from nats_backpressure.client.subject_template import template_names
from nats_backpressure.protocol.values import PRIORITIES, Priority

Scope = MutableMapping[str, Any]
"""An ASGI scope."""
_METHODS = """GET HEAD POST PUT PATCH DELETE OPTIONS TRACE CONNECT QUERY
ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT COPY LABEL LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF
MKWORKSPACE MOVE ORDERPATCH PROPFIND PROPPATCH REBIND REPORT SEARCH UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE
UPDATEREDIRECTREF VERSION-CONTROL M-SEARCH NOTIFY PURGE SOURCE SUBSCRIBE UNSUBSCRIBE"""
METHODS = frozenset(_METHODS.split())
"""Those of IANA's registry, and those that servers take besides."""
MOST_WRAPPED = 100
"""Layers of middleware that are looked through."""


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
    priority: Priority | Callable[[Scope], Priority] = NORMAL

    def __post_init__(self) -> None:
        pattern = PathPattern.of(self.path)
        _check_methods(self)
        if callable(self.priority):
            check_not_async(self.priority, f"the priority of route {self.path}")
        else:
            checked_priority(self.priority)
        if callable(self.subject):
            check_not_async(self.subject, f"the subject of route {self.path}")
        elif missing := set(template_names(self.subject)) - set(pattern.convertors):
            raise ValueError(f"route {self.path}: no {{{min(missing)}}}, which its subject {self.subject!r} names")

    def priority_of(self, scope: Scope) -> Priority:
        return self.priority if isinstance(self.priority, str) else self.priority(scope)


class Match(NamedTuple):
    """A route, and the values in the path."""

    route: Route
    parameters: dict[str, Any]


class _Guarded(NamedTuple):
    pattern: PathPattern
    methods: frozenset[str]
    """Empty: all."""
    route: Route


class Routes:
    """Finds the first route of a path and a method."""

    def __init__(self, routes: Iterable[Route], exempt: Iterable[str]) -> None:
        """`exempt`: paths that no route is looked for. Raises ValueError for a route that no request could come to: as
        Route does, and where the exempt paths or the routes before it take all that it matches."""
        if isinstance(exempt, str):
            raise ValueError(f'exempt: a list such as ["/healthz"] is expected, not {exempt!r}')
        self._exempt = [PathPattern.of(path, "exempt path") for path in exempt]
        self._routes: list[_Guarded] = []
        for route in routes:
            guarded = _Guarded(PathPattern.of(route.path), _methods(route), route)
            self._check_reachable(guarded)
            self._routes.append(guarded)

    def is_exempt(self, path: str) -> bool:
        forms = path, _other_form(path)
        return any(pattern.regex.match(form) for pattern in self._exempt for form in forms)

    def match(self, path: str, method: str) -> Match | None:
        """The first route, with or without a slash at the end: routers redirect from one to the other, or take both."""
        return self._match(path, method) or self._match(_other_form(path), method)

    def _match(self, path: str, method: str) -> Match | None:
        for pattern, methods, route in self._routes:
            if (not methods or method in methods) and (parameters := pattern.match(path)) is not None:
                return Match(route, parameters)
        return None

    def _check_reachable(self, one: _Guarded) -> None:
        path = one.route.path
        if exempt := [pattern.text for pattern in self._exempt if pattern.covers(one.pattern)]:
            raise ValueError(
                f"route {path}: no request comes to it, as {exempt[0]} is exempt: leave that out of `exempt`"
            )
        before = [earlier for earlier in self._routes if earlier.pattern.covers(one.pattern)]
        taken = frozenset().union(*(earlier.methods for earlier in before))
        if any(not earlier.methods for earlier in before) or (one.methods and one.methods <= taken):
            methods = f" ({', '.join(one.route.methods)})" if one.route.methods else ""
            earlier_paths = ", ".join(dict.fromkeys(earlier.route.path for earlier in before))
            raise ValueError(
                f"route {path}{methods}: no request comes to it, as the earlier {earlier_paths} takes them all: put it "
                "before, or leave it out"
            )


def route_path(scope: Scope) -> str:
    """The path as the application's routes have it: without the prefix of a proxy or of the mount."""
    path, root = str(scope.get("path", "")), str(scope.get("root_path", "")).rstrip("/")
    return (path[len(root) :] or "/") if root and (path == root or path.startswith(f"{root}/")) else path


def own_root_path(app: object) -> str:
    """The `root_path` that an application sets itself once it is called (of FastAPI), also through its middleware."""
    for _ in range(MOST_WRAPPED):
        if root := getattr(app, "root_path", ""):
            return str(root)
        app = getattr(app, "app", None)
    return ""


def _other_form(path: str) -> str:
    """Without the slash at the end, or with one."""
    return path.rstrip("/") if path.endswith("/") else f"{path}/"


def checked_priority(priority: Priority) -> Priority:
    """Raises ValueError for one that there is not."""
    if priority not in PRIORITIES:
        raise ValueError(f"the priority {priority!r} is none of {', '.join(PRIORITIES)}")
    return priority


def _methods(route: Route) -> frozenset[str]:
    methods = frozenset(method.upper() for method in route.methods)
    return methods | {"HEAD"} if "GET" in methods else methods


def _check_methods(route: Route) -> None:
    """Raises ValueError for what is no list of methods."""
    methods = route.methods
    if isinstance(methods, str) or not isinstance(methods, Iterable):
        raise ValueError(f'methods of route {route.path}: a list such as ["POST"] is expected, not {methods!r}')
    if unknown := [method for method in methods if not isinstance(method, str) or method.upper() not in METHODS]:
        raise ValueError(f"methods of route {route.path}: {unknown[0]!r} is no HTTP method")
