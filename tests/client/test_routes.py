"""Routes: they match what Starlette's own match, and what never could is refused."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match, Mount
from starlette.routing import Route as StarletteRoute

from nats_backpressure.client.path_pattern import CONVERTORS, PathPattern
from nats_backpressure.client.routes import Route, Routes, own_root_path, route_path

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


@pytest.mark.filterwarnings("ignore:The `root_path` parameter is deprecated")
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_root_path_that_the_application_sets_itself_is_found_through_its_middleware(layers: int) -> None:
    app: Any = FastAPI(root_path="/api")
    for _ in range(layers):
        app = CORSMiddleware(app)
    assert own_root_path(app) == "/api"
    assert own_root_path(Starlette()) == own_root_path(FastAPI()) == ""


def test_inside_a_mount_it_is_the_rest() -> None:
    seen = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen["path"] = route_path(scope)

    scope: dict[str, Any] = {"type": "http", "path": "/v1/acme/orders", "root_path": "", "method": "GET"}
    _, more = Mount("/v1/{tenant}", app).matches(scope)
    assert route_path(scope | more) == "/orders"


async def later(scope: Any) -> str:
    return "orders"


class Later:
    async def __call__(self, scope: Any) -> str:
        return "orders"


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"path": "orders"}, "begins with `/`"),
        ({"path": ""}, "begins with `/`"),
        ({"path": None}, "begins with `/`"),
        ({"path": "http://shop/orders"}, "begins with `/`"),
        ({"path": "/t/*"}, "one segment"),
        ({"path": "/t/{tenant"}, "one segment"),
        ({"path": "/t/{tenant:[a-z]+}"}, "one segment"),
        ({"path": "/t?all=1"}, "one segment"),
        ({"path": "/t#top"}, "one segment"),
        ({"path": "/t/{id:slug}"}, "slug is none of str, path, int"),
        ({"path": "/{id}/{id}"}, "each name once"),
        ({"path": "/a%20b"}, "write it decoded"),
        ({"path": "/t/../orders"}, "callers resolve"),
        ({"path": "/./orders"}, "callers resolve"),
        ({"path": "/orders "}, "blanks at an end"),
        ({"path": "/orders\n"}, "blanks at an end"),
        ({"methods": "POST"}, "a list such as"),
        ({"methods": None}, "a list such as"),
        ({"methods": ["PO ST"]}, "is no HTTP method"),
        ({"methods": ["PSOT"]}, "is no HTTP method"),
        ({"methods": ["GET", "GET,POST"]}, "is no HTTP method"),
        ({"methods": [b"POST"]}, "is no HTTP method"),
        ({"methods": [""]}, "is no HTTP method"),
        ({"priority": "hi"}, "none of low, normal, high, critical"),
        ({"priority": later}, "is an `async def`"),
        ({"subject": ""}, "must not be empty"),
        ({"subject": "a b"}, "blanks"),
        ({"subject": "orders."}, "empty token"),
        ({"subject": "orders.*"}, "plain subject"),
        ({"subject": "orders.{tenant}"}, "no {tenant}"),
        ({"subject": "orders.{id:int}"}, "no other braces"),
        ({"subject": "orders.{}"}, "no other braces"),
        ({"subject": "orders.{id"}, "no other braces"),
        ({"subject": None}, "is no text"),
        ({"subject": b"orders"}, "is no text"),
        ({"subject": later}, "is an `async def`"),
        ({"subject": Later()}, "is an `async def`"),
        ({"subject": partial(later)}, "is an `async def`"),
    ],
)
def test_what_could_never_match_or_never_decide_is_refused(wrong: dict[str, Any], hint: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(hint)):
        Route(**{"path": "/t/{id}", "subject": "orders"} | wrong)


@pytest.mark.parametrize(
    ("earlier", "path", "methods"),
    [
        (["/orders"], "/orders", []),
        (["/orders"], "/orders", ["POST"]),
        (["/{a}"], "/orders", []),
        (["/{a}"], "/{b}", []),
        (["/{a}"], "/{b:int}", []),
        (["/{a:float}"], "/{b:int}", []),
        (["/{a:path}"], "/t/{b}/{c:uuid}", []),
        (["/t/{a:path}"], "/t/{a:path}.json", []),
        (["/{a}-{b}"], "/{a}-x-{c:int}", []),
        ([("/orders", ["GET"])], "/orders", ["GET"]),
        ([("/orders", ["get"])], "/orders", ["HEAD"]),
        ([("/orders", ["GET"]), ("/{a}", ["POST"])], "/orders", ["GET", "POST"]),
        (["/other", "/{a:path}"], "/orders", []),
    ],
)
def test_a_route_of_which_earlier_ones_take_everything_is_refused(
    earlier: list[Any], path: str, methods: list[str]
) -> None:
    before = [Route(one, "s") if isinstance(one, str) else Route(one[0], "s", one[1]) for one in earlier]
    Routes(before, ())
    with pytest.raises(ValueError, match="no request comes to it"):
        Routes([*before, Route(path, "s", methods)], ())


@pytest.mark.parametrize(
    "routes",
    [
        ["/{a:int}", "/{a:float}", "/{a}", "/{a:path}"],
        ["/orders", "/orders/", "/{a}/"],
        [("/orders", ["GET"]), ("/orders", ["GET", "POST"]), "/orders"],
        ["/{a}-{b}", "/{a}"],
        ["/{a}/{b:path}", "/{b:path}"],
        ["/{a:path}/{b:path}", "/{c:path}"],
        ["/{a:uuid}", "/{a:int}"],
        ["/7", "/{a:int}"],
        ["/{a:int}{b:int}", "/{a:int}"],
        ["/7.5", "/{a:int}.{b:int}", "/{a:float}"],
    ],
)
def test_a_route_to_which_one_request_comes_is_taken(routes: list[Any]) -> None:
    Routes([Route(one, "s") if isinstance(one, str) else Route(one[0], "s", one[1]) for one in routes], ())


@given(templates, templates, st.lists(values, min_size=2, max_size=2))
def test_a_pattern_covers_only_what_it_matches_all_of(one: str, two: str, chosen: list[str]) -> None:
    covering, covered = PathPattern.of(one), PathPattern.of(two)
    if not covering.covers(covered):
        assert any(covered.match(s) is not None and covering.match(s) is None for s in covered._samples())
        return
    path = two
    for name, value in zip(NAMES, chosen, strict=True):
        for convertor in ("", *(f":{each}" for each in CONVERTORS)):
            path = path.replace("{" + name + convertor + "}", value)
    assert covered.match(path) is None or covering.match(path) is not None


def test_a_route_on_an_exempt_path_is_refused_and_an_exempt_path_is_so_in_both_forms() -> None:
    with pytest.raises(ValueError, match=r"route /metrics: no request comes to it, as /metrics is exempt"):
        Routes([Route("/metrics", "s")], ["/metrics"])
    with pytest.raises(ValueError, match="exempt path 'healthz'"):
        Routes([], ["healthz"])
    with pytest.raises(ValueError, match="a list such as"):
        Routes([], "/healthz")
    routes = Routes([Route("/{path:path}", "s")], ["/healthz"])
    assert [routes.is_exempt(path) for path in ("/healthz", "/healthz/", "/healthz/x")] == [True, True, False]
