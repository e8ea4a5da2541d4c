"""Refusal: what a gateway answers to a request that is not admitted."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from nats_backpressure.client.admission import Admission

JITTER = 0.5
"""Retry-After is spread over up to this share more, never less: refused callers must not all return at once."""
MAX_RETRY_AFTER = 86_400
TITLES = {503: "Service Unavailable", 429: "Too Many Requests"}
CODE = "service_overloaded"


@dataclass(frozen=True)
class Refusal:
    """The status, the headers and a problem (RFC 9457) as the body. It names no subject: subjects are internal."""

    status_code: int
    """503 or 429."""
    retry_after: int
    """Whole seconds, with jitter."""

    content_type: ClassVar[str] = "application/problem+json"
    """Of the body."""
    close_code: ClassVar[int] = 1013
    """For a WebSocket, which is accepted and closed: try again later (IANA registry of RFC 6455)."""

    @classmethod
    def of(cls, admission: Admission, status_code: int = 503) -> Refusal:
        return cls(status_code, jittered(admission.retry_after_seconds))

    @property
    def detail(self) -> str:
        return f"The service is overloaded; try again in {self.retry_after} s."

    @property
    def close_reason(self) -> str:
        return f"retry after {self.retry_after} s"

    @property
    def headers(self) -> dict[str, str]:
        """Those that any answer in its place needs too."""
        return {"retry-after": str(self.retry_after), "cache-control": "no-store"}

    @property
    def problem(self) -> dict[str, Any]:
        return {
            "type": "about:blank",
            "title": TITLES[self.status_code],
            "status": self.status_code,
            "detail": self.detail,
            "code": CODE,
            "retry_after_seconds": self.retry_after,
        }

    @property
    def body(self) -> bytes:
        """The problem as JSON."""
        return msgspec.json.encode(self.problem)


def checked_status_code(status_code: int) -> int:
    """Raises ValueError for one that callers do not take for `try again later`."""
    if status_code not in TITLES:
        raise ValueError(f"status_code must be 503 or 429, not {status_code}")
    return status_code


def jittered(seconds: float) -> int:
    """Whole seconds, at least 1: from `seconds` up to half as much more."""
    least = max(1, math.ceil(min(seconds, MAX_RETRY_AFTER)))
    return random.randint(least, max(least + 1, math.floor(least * (1 + JITTER))))
