"""Logging: one line per event with a dotted name, as JSON or for a terminal, without secrets and without floods."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from typing import Any, TextIO

import structlog
from msgspec import Struct
from structlog.typing import EventDict, Processor, WrappedLogger

from nats_backpressure.runtime.tasks import Bounded

SECRET_KEYS = re.compile(r"pass(word|wd)?$|token$|secret|seed$|creds$|jwt|nkey$", re.IGNORECASE)
"""Names of values that are secrets; a `password_file` is a path, which the log should show."""
SECRETS_IN_TEXT = [
    (re.compile(r"\b(\w{1,16}://)[^/\s]*@"), r"\1***@"),  # user and password of a URL
    (re.compile(r"\bS[A-Z][A-Z2-7]{56}\b"), "***"),  # an nkey's seed
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"), "***"),  # a JWT
    (
        re.compile(
            r"((?:pass(?:word|wd)?|token|secret|seed)(?:=|[\"']\s*:\s*))(\"[^\"]*\"|'[^']*'|[^\s,;)}\]]+)",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
]
REPEATS = 10
"""Warnings and errors of one name per minute; the next line of that name has the number of those left out."""
SUBJECT_LINES, SUBJECT_PERIOD = 10, 600.0
"""Info lines of one name about one subject or consumer in so many seconds: one that changes every few seconds would
write 22 MB a day. The next line has the number of those left out; metrics count all."""
NAME_LINES, NAME_PERIOD = 60, 60.0
"""Info lines of one name about any subject or consumer in so many seconds."""
LONGEST_MESSAGE = 500
"""Characters of a message from a library."""
HARMLESS = "returning true from eof_received() has no effect when using ssl"
"""What asyncio logs whenever a TLS connection ends; it means nothing."""
DEEPEST = 4
"""Levels of nested values that are searched for secrets; deeper ones are logged as text."""


def set_up(level: str, form: str, to: TextIO = sys.stderr) -> None:
    """Send our own lines and those of libraries to `to`; `form` is `json`, `console` or `auto` (by terminal)."""
    console = form == "console" or (form == "auto" and to.isatty())
    # Tracebacks without the values of variables: they may hold secrets.
    last: Processor = (
        structlog.dev.ConsoleRenderer(colors=to.isatty(), exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer(default=str)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            limit_repeats(Limiter(REPEATS, 60.0)),
            *([] if level == "debug" else [limit_subjects()]),
            stamp,
            structlog.processors.format_exc_info,
            redact,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *args: _Lines(to),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    logging.captureWarnings(True)


def stamp(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Add the time: RFC 3339 in UTC with milliseconds and a Z."""
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Replace secrets with `***`: values whose names or contents look like one."""
    return {key: "***" if SECRET_KEYS.search(str(key)) else _clean(value) for key, value in event.items()}


def _clean(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        for pattern, shown in SECRETS_IN_TEXT:
            value = pattern.sub(shown, value)
        return value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, dict) and depth < DEEPEST:
        return {k: "***" if SECRET_KEYS.search(str(k)) else _clean(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and depth < DEEPEST:
        return [_clean(item, depth + 1) for item in value]
    return _clean(str(value), depth)


class Allowance(Struct):
    """How many lines one key may still log in its present period, and how many were left out."""

    ends: float
    left: int
    refused: int = 0


class Limiter:
    """At most `n` per key and `seconds`. Bounded: the least recently used key is dropped, and starts again."""

    def __init__(self, n: int, seconds: float, keys: int = 1024, clock: Callable[[], float] = time.monotonic) -> None:
        self._n, self._seconds, self._clock = n, seconds, clock
        self._allowances: Bounded[str, Allowance] = Bounded(keys)
        self._lock = Lock()

    def refused(self, key: str) -> int | None:
        """None if `key` is over its limit; else how many were refused in its last period."""
        with self._lock:
            now, before = self._clock(), 0
            allowance = self._allowances.get(key)
            if allowance is None or now >= allowance.ends:
                before = allowance.refused if allowance else 0
                allowance = self._allowances[key] = Allowance(now + self._seconds, self._n)
            self._allowances.move_to_end(key)
            if allowance.left == 0:
                allowance.refused += 1
                return None
            allowance.left -= 1
            return before


def limit_repeats(limiter: Limiter) -> Processor:
    """Drop warnings and errors of a name that come too often: what other programs send must not fill a disk."""

    def limit(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if event.get("level") not in ("warning", "error"):
            return event
        refused = limiter.refused(f"{event.get('level')} {event.get('event')}")
        if refused is None:
            raise structlog.DropEvent
        if refused:
            event["left_out"] = refused
        return event

    return limit


def limit_subjects(clock: Callable[[], float] = time.monotonic) -> Processor:
    """Drop info lines about a subject or consumer that come too often: its status may change all the time."""
    one = Limiter(SUBJECT_LINES, SUBJECT_PERIOD, keys=10_000, clock=clock)
    all_of_a_name = Limiter(NAME_LINES, NAME_PERIOD, clock=clock)

    def limit(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        what = event.get("subject") or event.get("consumer")
        if event.get("level") != "info" or not what:
            return event
        name = str(event.get("event"))
        refused = one.refused(f"{name} {what}")
        others = None if refused is None else all_of_a_name.refused(name)
        if refused is None or others is None:
            raise structlog.DropEvent
        if refused or others:
            event["left_out"] = refused or others
        return event

    return limit


class _Lines:
    """Writes lines. A log that cannot be written, because its reader has ended, must not end the service."""

    def __init__(self, to: TextIO) -> None:
        self._to = to

    def msg(self, line: str) -> None:
        try:
            self._to.write(line + "\n")
            self._to.flush()
        except (OSError, ValueError):
            pass

    log = debug = info = warn = warning = error = critical = fatal = exception = failure = err = msg


class _Forward(logging.Handler):
    """Logs what a library logs, as one line without its stack trace."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if HARMLESS in record.getMessage():
                return
            error = record.exc_info[1] if record.exc_info else None
            facts = {"error": f"{type(error).__name__}: {error}"[:LONGEST_MESSAGE]} if error else {}
            name = f"{record.name.split('.')[0]}.log"
            level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
            structlog.get_logger().log(level, name, message=record.getMessage()[:LONGEST_MESSAGE], **facts)
        except Exception:  # an error in a library's log call must not end our loops
            self.handleError(record)
