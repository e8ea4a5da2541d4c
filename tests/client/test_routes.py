"""Routes: they match what Starlette's own match, and what never could is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Match, Mount
from starlette.routing import Route as StarletteRoute

from nats_backpressure.client.routes import CONVERTORS, Route, Routes, route_path

NAMES = ("tenant", "id")
pieces = st.one_of(
    st.sampled_from(["/orders", "/v1", "/", ".json", "-", "/a+b", "/ü"]),
    st.builds("/{{{0}:{1}}}".format, st.sampled_from(NAMES), st.sampled_from([*CONVERTORS])),
    st.builds("/{{{0}}}".format, st.sampled_from(NAMES)),
)
templates = (
    st.lists(pieces, min_size=1, max_size=4)
    .map(lambda parts: "/" + "".join(parts).lstrip("/"))
    .filter(lambda path: all(path.count("{" + name) <= 1 for name in NAMES))
)
values = st.sampled_from(
    ["acme", "7", "007", "1.5", "a/b", "", "b3b0c1de-0000-4000-8000-0123456789ab", "x.json", "ü", "1."]
)
METHODS = ("GET", "HEAD", "POST", "OPTIONS")


async def endpoint(request: Any) -> None: ...


@given(templates, values, values, st.sampled_from(METHODS), st.lists(st.sampled_from(["GET", "POST"]), min_size=1))
def test_it_matches_what_a_route_of_starlette_does(
    template: str, one: str, two: str, method: str, methods: list[str]
) -> None:
    path = template
    for name, value in zip(NAMES, (one, two), strict=True):
        for convertor in ("", *(f":{each}" for each in CONVERTORS)):
            path = path.replace("{" + name + convertor + "}", value)
    scope = {"type": "http", "path": path, "root_path": "", "method": method}
    theirs, more = StarletteRoute(template, endpoint, methods=methods).matches(scope)
    ours = Routes([Route(template, "s", methods=methods)], ())._match(path, method)
    assert (ours is not None) == (theirs is Match.FULL)
    assert ours is None or ours.parameters == more["path_params"]


@given(
    st.sampled_from(["", "/api", "/api/", "/a/b"]),
    st.sampled_from(["/api", "/a/b", "/apix/orders", "/api/orders", "/"]),
)
def test_the_path_is_the_one_that_routers_see(root: str, path: str) -> None:
    routes = [StarletteRoute(p, endpoint) for p in ("/orders", "/", "/api", "/a/b", "/apix/orders", "/api/orders")]
    scope: dict[str, Any] = {"type": "http", "path": path, "root_path": root.rstrip("/"), "method": "GET"}
    theirs = [route.path for route in routes if route.matches(scope)[0] is Match.FULL]
    assert theirs in ([route_path(scope)], []), "with `/` where nothing is left"


@pytest.mark.parametrize("path", ["/orders\n", "/t/7\n", "/t/" + "7" * 5000])
def test_no_odd_path_goes_around_a_route_or_raises(path: str) -> None:
    """Starlette's own routes match a newline at the end."""
    assert Routes([Route("/orders", "s"), Route("/t/{id:int}", "s"), Route("/t/{name}", "s")], ()).match(path, "GET")


def test_inside_a_mount_it_is_the_rest() -> None:
    seen = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen["path"] = route_path(scope)

    scope: dict[str, Any] = {"type": "http", "path": "/v1/acme/orders", "root_path": "", "method": "GET"}
    _, more = Mount("/v1/{tenant}", app).matches(scope)
    assert route_path(scope | more) == "/orders"


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"path": "orders"}, "begins with `/`"),
        ({"path": "/t/*"}, "one segment"),
        ({"path": "/t/{tenant"}, "one segment"),
        ({"path": "/t/{tenant:[a-z]+}"}, "one segment"),
        ({"path": "/t/{id:slug}"}, "slug is none of str, path, int"),
        ({"path": "/{id}/{id}"}, "each name once"),
        ({"methods": "POST"}, "a list such as"),
        ({"methods": ["PO ST"]}, "a list such as"),
        ({"methods": [""]}, "a list such as"),
        ({"priority": "hi"}, "none of low, normal, high, critical"),
        ({"subject": ""}, "must not be empty"),
        ({"subject": "a b"}, "blanks"),
        ({"subject": "orders."}, "empty token"),
        ({"subject": "orders.*"}, "plain subject"),
        ({"subject": "orders.{tenant}"}, "no {tenant}"),
    ],
)
def test_what_could_never_match_is_refused(wrong: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint.replace("*", r"\*").replace("{", r"\{")):
        Route(**{"path": "/t/{id}", "subject": "orders"} | wrong)
