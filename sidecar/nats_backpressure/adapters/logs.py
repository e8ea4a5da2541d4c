"""Logs: dotted names with facts, one line per change; JSON unless a terminal looks on; no secret, no flood."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from threading import Lock
from typing import Any, TextIO

import structlog
from msgspec import Struct
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_KEYS = re.compile(r"pass(word|wd)?$|token$|secret|seed$|creds$|jwt|nkey$", re.IGNORECASE)
"""Names of values that are secrets; a `password_file` is a path, and wanted in the log."""
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
"""Warnings and errors of one name within a minute; the next line of that name says how many were left out."""
LONGEST_FOREIGN = 500
"""Characters of what a library says."""
DEEPEST = 4


def set_up(level: str, form: str, to: TextIO = sys.stderr) -> None:
    """Send our own lines and those of the libraries to one place, in one form."""
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
    """RFC 3339 in UTC with milliseconds and a Z."""
    event["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Blank what looks like a secret, by its name or by its own look."""
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
    """What one key may still do in its present period, and how often it was refused."""

    ends: float
    left: int
    refused: int = 0


class Limiter:
    """At most `n` per key and period. Keys are bounded: the one used longest ago is forgotten, and begins anew."""

    def __init__(self, n: int, seconds: float, keys: int = 1024, clock: Callable[[], float] = time.monotonic) -> None:
        self._n, self._seconds, self._keys, self._clock = n, seconds, keys, clock
        self._allowed: OrderedDict[str, Allowance] = OrderedDict()
        self._lock = Lock()

    def refused(self, key: str) -> int | None:
        """None while `key` must be silent; else how many were refused since it last was not."""
        with self._lock:
            now, before = self._clock(), 0
            found = self._allowed.get(key)
            if found is None or now >= found.ends:
                before = found.refused if found else 0
                found = self._allowed[key] = Allowance(now + self._seconds, self._n)
            self._allowed.move_to_end(key)
            if len(self._allowed) > self._keys:
                self._allowed.popitem(last=False)
            if found.left == 0:
                found.refused += 1
                return None
            found.left -= 1
            return before

    def allow(self, key: str) -> bool:
        return self.refused(key) is not None


def limit_repeats(limiter: Limiter) -> Processor:
    """Drops warnings and errors of a name that come too often: what others send us must not fill a disk."""

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


class _Lines:
    """Writes lines. A log that cannot be written, because whoever read it is gone, must not end the service."""

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
    """What a library logs, as a line of ours without its stack trace: that is for whoever debugs the library."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            error = record.exc_info[1] if record.exc_info else None
            facts = {"error": f"{type(error).__name__}: {error}"[:LONGEST_FOREIGN]} if error else {}
            name = f"{record.name.split('.')[0]}.log"
            level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
            structlog.get_logger().log(level, name, message=record.getMessage()[:LONGEST_FOREIGN], **facts)
        except Exception:  # a library that logs badly must not end in our loops
            self.handleError(record)
