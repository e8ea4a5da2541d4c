"""Finds streams that store our request subjects: the stream's ack would reach the caller before our answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.protocol.endpoints import ENDPOINTS
from nats_backpressure.protocol.patterns import covers

log = structlog.get_logger()

REQUESTS = tuple(endpoint.subject.replace(">", "x") for endpoint in ENDPOINTS)
"""A subject of each kind of request, after the prefix."""


def request_subjects(prefix: str, alias: str | None) -> tuple[str, ...]:
    """A subject of each kind of request, and the alias where there is one."""
    return (*(f"{prefix}.{tail}" for tail in REQUESTS), *([alias] if alias else []))


class CapturedSubjects:
    """Knows the streams of the newest list; logs each captured request subject once. `on_update` is called after every
    list, when there is an alias that may have to be left or taken again."""

    def __init__(self, prefix: str, alias: str | None) -> None:
        self._subjects = request_subjects(prefix, alias)
        self._has_alias = alias is not None
        self.on_update: Callable[[], object] = lambda: None
        self._looks: Sequence[StreamLook] = ()
        self._captured: set[tuple[str, str]] = set()
        """Streams with the subject that each captures; as many as there are."""

    def update(self, looks: Sequence[StreamLook]) -> None:
        """A list of streams was read."""
        before, self._looks = self._looks, looks
        # Lists come several times a second, and hardly ever show other subjects.
        if [(look.name, look.subjects) for look in looks] != [(look.name, look.subjects) for look in before]:
            self._log_captured()
        if self._has_alias:
            self.on_update()

    def _log_captured(self) -> None:
        before, now = self._captured, [(stream, each) for each in self._subjects for stream in self.streams_of(each)]
        self._captured = set(now)
        for stream, subject in now:
            if (stream, subject) not in before:
                log.error(
                    "subject.captured",
                    subject=subject,
                    stream=stream,
                    hint="JetStream answers there first; take the subject out of the stream",
                )

    def streams_of(self, subject: str) -> list[str]:
        """The streams that store what is sent to `subject`, and would answer it with their own acknowledgement."""
        return [look.name for look in self._looks if any(covers(pattern, subject) for pattern in look.subjects)]
