"""The log: one line for each event, readable by machines, without secrets and without floods."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import warnings
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.adapters import logs
from nats_backpressure.adapters.logs import (
    NAME_LINES,
    NAME_PERIOD,
    REPEATS,
    SUBJECT_LINES,
    SUBJECT_PERIOD,
    Limiter,
    set_up,
)

pytestmark = pytest.mark.usefixtures("logs_as_before")

SEED = "SUAEL6RG3WBX4CVPGVWCSIDIBVQYGZXKJQ3ZQ7VDXCYDUJ6NKWTQCWF7ZE"
JWT = "eyJ0eXAiOiJqd3QifQ.eyJqdGkiOiJXIn0.c2lnbmF0dXJl"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(to: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in to.getvalue().splitlines()]


def logged(**facts: Any) -> dict[str, Any]:
    to = io.StringIO()
    set_up("info", "json", to)
    structlog.get_logger().info("a.fact", **facts)
    (line,) = lines(to)
    return line


def test_a_line_is_a_name_with_facts_and_the_time_to_the_millisecond() -> None:
    line = logged(subject="orders.new", reasons=("pending",), n=1, ratio=0.5, nothing=None, yes=True)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {
        "event": "a.fact", "level": "info", "subject": "orders.new", "reasons": ["pending"], "n": 1, "ratio": 0.5,
        "nothing": None, "yes": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("form", "to", "is_json"),
    [
        ("auto", io.StringIO, True),
        ("auto", Terminal, False),
        ("json", Terminal, True),
        ("console", io.StringIO, False),
    ],
)
def test_it_is_json_unless_a_terminal_looks_on(form: str, to: type[io.StringIO], is_json: bool) -> None:
    out = to()
    set_up("info", form, out)
    structlog.get_logger().info("a.fact", n=1)
    assert out.getvalue().startswith("{") is is_json and "a.fact" in out.getvalue()


def test_lines_below_the_level_are_left_out() -> None:
    to = io.StringIO()
    set_up("warning", "json", to)
    for method in ("debug", "info", "warning", "error"):
        getattr(structlog.get_logger(), method)("a.fact")
    assert [line["level"] for line in lines(to)] == ["warning", "error"]


@pytest.mark.parametrize("key", ["password", "token", "NATS_TOKEN", "nkey", "creds", "client_secret", "jwt", "seed"])
def test_a_value_with_the_name_of_a_secret_is_replaced(key: str) -> None:
    assert logged(**{key: "s3cret"})[key] == "***"
    assert logged(inside={"more": {key: "s3cret"}})["inside"] == {"more": {key: "***"}}


@pytest.mark.parametrize("key", ["password_file", "credentials_file", "token_file", "seeded"])
def test_the_path_of_a_secret_is_logged(key: str) -> None:
    assert logged(**{key: "/run/secrets/x"})[key] == "/run/secrets/x"


@pytest.mark.parametrize(
    "text",
    [
        "nats://user:s3cret@host:4222",
        "cannot reach nats://user:s3cret@a:1,tls://other:s3cret@b:2 now",
        "nats://s3cret@host",
        "nats://user:p@s3cret@host",
        'Authorization(password="s3cret")',
        "auth failed: token=s3cret, user=x",
        "{'password': 's3cret', 'user': 'x'}",
    ],
)
def test_a_secret_inside_a_text_is_blanked(text: str) -> None:
    for logged_text in (
        logged(error=text),
        logged(servers=[text]),
        logged(thing={"a": (text,)}),
        logged(x=ValueError(text)),
    ):
        assert "s3cret" not in json.dumps(logged_text) and "***" in json.dumps(logged_text)


def test_seeds_and_tokens_are_known_by_their_look() -> None:
    logged_text = json.dumps(logged(error=f"bad {SEED}", other=f"signed {JWT}!"))
    assert SEED not in logged_text and JWT not in logged_text


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_neither_variables_nor_secrets(form: str) -> None:
    to = Terminal()
    set_up("info", form, to)
    held = "t0psecret"
    try:
        raise ValueError("cannot reach nats://user:s3cret@host")
    except ValueError as error:
        structlog.get_logger().error("loop.crashed", exc_info=error)
    assert "ValueError" in to.getvalue() and held not in to.getvalue() and "s3cret" not in to.getvalue()


def test_lines_of_libraries_have_the_same_form() -> None:
    to = io.StringIO()
    set_up("info", "json", to)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request from %s", "somebody")
    logging.getLogger("nats.aio.client").error("cannot", exc_info=ValueError("nats://u:s3cret@h"))
    logging.getLogger("asyncio").info("not worth a line")
    logging.getLogger("odd").log(35, "between two levels")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("take care", UserWarning, stacklevel=1)
    printed = lines(to)
    assert [(line["event"], line["level"]) for line in printed] == [
        ("uvicorn.log", "warning"),
        ("nats.log", "error"),
        ("odd.log", "warning"),
        ("py.log", "warning"),
    ]
    assert printed[0]["message"] == "Invalid HTTP request from somebody"
    assert printed[1]["error"] == "ValueError: nats://***@h"


def test_a_library_that_logs_badly_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    set_up("info", "json", io.StringIO())
    logging.getLogger("odd").warning("%d", "no number")


async def test_an_exception_that_was_never_retrieved_is_one_line() -> None:
    to = io.StringIO()
    set_up("info", "json", to)
    asyncio.get_running_loop().call_exception_handler({"message": "lost", "exception": ValueError("why")})
    (line,) = lines(to)
    assert line["event"] == "asyncio.log" and line["error"] == "ValueError: why"


def test_a_reader_that_is_gone_does_not_end_the_service() -> None:
    to = io.StringIO()
    set_up("info", "json", to)
    to.close()
    structlog.get_logger().error("a.fact")


def test_repeated_lines_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    to = io.StringIO()
    monkeypatch.setattr(logs, "Limiter", lambda n, seconds, **more: Limiter(n, seconds, clock=lambda: now))
    set_up("info", "json", to)
    log = structlog.get_logger()
    for _ in range(REPEATS + 5):
        log.error("request.failed")
        log.info("status.changed")
    assert sum(line["event"] == "request.failed" for line in lines(to)) == REPEATS
    assert sum(line["event"] == "status.changed" for line in lines(to)) == REPEATS + 5
    now = 60.0
    log.error("request.failed")
    assert lines(to)[-1]["left_out"] == 5


def test_a_limiter_allows_so_many_in_each_period() -> None:
    now = 0.0
    limiter = Limiter(2, 60.0, clock=lambda: now)
    assert [limiter.refused("a") for _ in range(4)] == [0, 0, None, None]
    assert limiter.refused("b") == 0
    now = 59.9
    assert limiter.refused("a") is None
    now = 60.0
    assert limiter.refused("a") == 3
    assert limiter.refused("a") == 0


@given(st.lists(st.text(max_size=3), max_size=50))
def test_a_limiter_remembers_only_so_many_keys(keys: list[str]) -> None:
    limiter = Limiter(1, 60.0, keys=5)
    for key in keys:
        limiter.refused(key)
        assert limiter.refused(key) is None
    assert len(limiter._allowances) <= 5


class Flapping:
    """Lines about subjects, on a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self._limit = logs.limit_subjects(lambda: self.now)

    def passes(self, level: str = "info", **facts: Any) -> bool:
        return self.line(level, **facts) is not None

    def line(self, level: str = "info", **facts: Any) -> Any:
        try:
            return self._limit(None, level, {"event": "status.changed", "level": level, **facts})
        except structlog.DropEvent:
            return None


def test_a_subject_that_changes_all_the_time_fills_no_disk() -> None:
    log = Flapping()
    passed = 0
    for _ in range(4500, 86_400_000, 4500):  # a day
        log.now += 4.5
        passed += log.passes(subject="a")
    assert passed <= (86_400 / SUBJECT_PERIOD + 1) * SUBJECT_LINES
    log.now += SUBJECT_PERIOD
    assert log.line(subject="a")["left_out"] > 0


def test_many_subjects_are_bounded_together_and_one_of_them_hides_no_other() -> None:
    log = Flapping()
    assert sum(log.passes(subject="one") for _ in range(100)) == SUBJECT_LINES
    assert log.passes(subject="other") and log.passes(consumer="c")
    assert sum(log.passes(subject=f"s{n}") for n in range(1000)) == NAME_LINES - SUBJECT_LINES - 2
    log.now += NAME_PERIOD
    assert log.line(subject="s1")["left_out"] > 900


def test_what_is_no_line_about_a_subject_is_not_limited_by_that() -> None:
    log = Flapping()
    assert all(log.passes() for _ in range(1000))
    assert all(log.passes("warning", subject="a") for _ in range(1000)), "those have a limit of their own"


@pytest.mark.parametrize(("level", "shown"), [("info", SUBJECT_LINES), ("debug", 100)])
def test_at_debug_every_line_is_shown(level: str, shown: int) -> None:
    to = io.StringIO()
    set_up(level, "json", to)
    for _ in range(100):
        structlog.get_logger().info("status.changed", subject="a")
    assert len(lines(to)) == shown


def test_what_asyncio_logs_at_each_end_of_a_tls_connection_is_left_out() -> None:
    to = io.StringIO()
    set_up("info", "json", to)
    logging.getLogger("asyncio").warning("returning true from eof_received() has no effect when using ssl")
    logging.getLogger("asyncio").warning("something else")
    assert [line["message"] for line in lines(to)] == ["something else"]
