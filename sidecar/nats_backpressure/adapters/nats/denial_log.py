"""DenialLog: logs the rights that one connection lacks, all of them in one line, and again when others are missing."""

from __future__ import annotations

import math
import re

import structlog

from nats_backpressure.adapters.nats.denied_rights import ALL_RIGHTS, denial
from nats_backpressure.config.nats import Nats
from nats_backpressure.doctor.api_prefix import question
from nats_backpressure.runtime.tasks import Bounded

log = structlog.get_logger()

TOGETHER = 1.0
"""Seconds in which what is refused is collected for one line."""
AGAIN = 300.0
"""Seconds after which rights that are still missing are logged again."""
SHOWN = 20
"""Subjects of each kind in a line; further ones are counted."""
REMEMBERED = 500
"""Subjects of one connection; the oldest is dropped first."""
RANDOM = re.compile(r"\.[0-9a-f]{16}(?=\.|$)")
"""The name of a consumer that we make, which differs each time."""
OURS = re.compile(r"^(_[^.]*|\$KV\.[^.]+|[^.$]+\.v1\.(?:event|internal))\..+$")
"""A reply subject, a key of a bucket, an event or a message to other replicas: there are many of each."""


class DenialLog:
    """Of one connection, over all its clients."""

    def __init__(self, connection: str, nats: Nats) -> None:
        self._connection, self._nats = connection, nats
        self._denied_at: Bounded[tuple[str, str], float] = Bounded(REMEMBERED)
        """When each was last refused, by kind and subject."""
        self._logged: set[tuple[str, str]] = set()
        self._due_at = math.inf

    def add(self, text: str, now: float) -> None:
        """The server refused something; `now` is monotonic."""
        if (what := denial(text)) is None:
            return
        key = what.kind, pattern(what.subject)
        self._denied_at[key] = now
        if key not in self._logged:
            self._due_at = min(self._due_at, now + TOGETHER)

    def report(self, now: float) -> None:
        """Log what is missing, if that is due."""
        if now < self._due_at:
            return
        present = sorted(key for key, at in self._denied_at.items() if now - at < AGAIN)
        self._logged, self._due_at = set(present), now + AGAIN if present else math.inf
        if present:
            first = question(self._nats, (subject for _, subject in present))
            subjects = {kind: [subject for k, subject in present if k == kind] for kind in ("publish", "subscribe")}
            log.warning(
                "rights.missing",
                connection=self._connection,
                **{kind: each[:SHOWN] for kind, each in subjects.items() if each},
                not_shown=sum(len(each[SHOWN:]) for each in subjects.values()),
                hint=f"{first}allow these in the server's configuration{_or_else(present)}; {ALL_RIGHTS}",
            )


def _or_else(denied: list[tuple[str, str]]) -> str:
    inbox = any(kind == "subscribe" and subject.startswith("_INBOX") for kind, subject in denied)
    return " (or set nats.inbox_prefix to inboxes that this user may subscribe to)" if inbox else ""


def pattern(subject: str) -> str:
    """A subject as one would allow it: without what differs each time."""
    return RANDOM.sub(".*", OURS.sub(r"\1.>", subject))
