"""What a client counts, and how it speaks up: each kind of trouble once, and again only after it was over."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger("nats_backpressure.client")

MOST_SAID = 1000
"""Things said that are remembered; beyond, further ones are only counted."""


@dataclass(slots=True)
class Stats:
    """Counters since the start. `on_count(name, subject)`, if set, is called with each as well, for any metrics
    library; it must be quick, and whatever it raises is swallowed."""

    admitted: int = 0
    """Requests let through by `admit`."""
    shed: int = 0
    """Requests refused by `admit`."""
    would: int = 0
    """Requests let through under `mode: observe` that enforcement would have throttled or rejected."""
    unwatched: int = 0
    """Requests and questions about a subject nobody watches, or nothing is known of yet: admitted."""
    no_subject: int = 0
    """Requests and questions without a subject: admitted."""
    bad_priority: int = 0
    """Requests of a priority that is none: treated as normal."""
    asked: int = 0
    """Questions sent to the sidecar."""
    reused: int = 0
    """Questions answered from an answer still valid, or together with one under way."""
    failed_open: int = 0
    """Questions without an answer: continue."""
    outages: int = 0
    """Times the sidecar stopped answering."""
    malformed_reply: int = 0
    malformed_state: int = 0
    malformed_heartbeat: int = 0
    keys_refused: int = 0
    """States left out because too many are kept already."""
    watch_lost: int = 0
    """Times the watch was lost, or could not be begun."""
    snapshots: int = 0
    """Times the watch read every state, at its beginning and after each loss."""
    events: int = 0
    """Events handed on."""
    events_dropped: int = 0
    """Events seen before, passed, malformed, or too many."""
    pulled: int = 0
    """Messages fetched through a pull gate."""
    held_back: int = 0
    """Times a pull gate was told to wait."""
    exempt: int = 0
    """Requests on exempt routes."""
    unknown_route: int = 0
    """Requests on routes without a subject: admitted."""
    route_error: int = 0
    """Times a function of the gateway's own, for a subject or a priority, raised: admitted."""
    reports: int = 0
    """Reports of what was offered and admitted."""
    on_count: Callable[[str, str], None] | None = field(default=None, repr=False)

    def count(self, name: str, subject: str = "") -> None:
        setattr(self, name, getattr(self, name) + 1)
        if self.on_count is not None:
            self.tell(name, subject)

    def tell(self, name: str, subject: str) -> None:
        """Call `on_count`; counting must never cost a request."""
        assert self.on_count is not None
        try:
            self.on_count(name, subject)
        except Exception:
            self.on_count = None
            log.exception("on_count raised and is not called any more")


class OnceLogger:
    """Says a thing once, until it is over."""

    def __init__(self) -> None:
        self._said: set[tuple[str, str]] = set()

    def say(self, kind: str, about: str, text: str) -> None:
        """A warning about one thing; only the first of its kind until `over`."""
        if (kind, about) in self._said or len(self._said) >= MOST_SAID:
            return
        self._said.add((kind, about))
        log.warning("%s", text)

    def over(self, kind: str, about: str, text: str) -> None:
        """It is over; said only if it was said that it began."""
        if (kind, about) in self._said:
            self._said.discard((kind, about))
            log.info("%s", text)
