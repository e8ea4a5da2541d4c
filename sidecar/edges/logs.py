"""Logs: dotted names with facts, one line per change; JSON unless a terminal looks on; never a secret."""

from __future__ import annotations

import logging
import re
import sys
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

SECRET_KEYS = re.compile(r"pass(word)?|token|secret|seed|creds|jwt|nkey", re.IGNORECASE)
USERINFO = re.compile(r"(\w+://)[^/@\s]+@")


def set_up(level: str, form: str, to: TextIO = sys.stderr) -> None:
    """Send our own lines and those of the libraries to one place, in one form."""
    console = form == "console" or (form == "auto" and to.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    last: Any = structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer(default=str)
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(to),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def redact(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Blank what looks like a secret, by its key or inside a URL."""
    for key, value in event.items():
        if key != "event" and SECRET_KEYS.search(key):
            event[key] = "***"
        elif isinstance(value, str):
            event[key] = USERINFO.sub(r"\1***@", value)
    return event


class _Forward(logging.Handler):
    """What a library logs, as a line of ours without its stack trace: that is for whoever debugs the library."""

    def emit(self, record: logging.LogRecord) -> None:
        name = record.name.split(".")[0]
        log = structlog.get_logger()
        error = record.exc_info[1] if record.exc_info else None
        facts = {"error": f"{type(error).__name__}: {error}"} if error else {}
        log.log(record.levelno, f"{name}.log", message=record.getMessage()[:500], **facts)
