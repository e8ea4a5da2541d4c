"""Who wants messages of a consumer, and how many: those that asked lately, and those that work on what they have. Pure.

A worker that handles one message after another does not ask until it has handled all. Without its part meanwhile, the
first one of several that are done at about the same time would get what all of them want.
"""

from __future__ import annotations

from msgspec import Struct

WANTS_FOR = 1.5
"""Seconds after its last request for which any requester has a part of the mark: one that wants more, and has nothing
to work on, asks once a second. So others have all of it soon after workers ended."""
SLOWER = 2.0
"""By how much longer one may work on its messages than it took for as many before."""
KNOWN_FOR = 60.0
"""Seconds for which a requester is known after its last request, and wants messages at most."""
MOST_REQUESTERS = 1024
"""Requesters that are remembered; beyond, the one that asked least recently is forgotten."""


class _Known(Struct, gc=False):
    at: float
    """When it asked last."""
    wants: int
    """What it would hold if it was granted all it asked for."""
    has: int
    """What it reported to hold, and what it was granted since."""
    per_message: float
    """Seconds that it took for one when it last pulled any, with its wait for the first."""
    since: float
    """Since when it works on those that it took as long for as is measured next."""
    had: int
    """How many it had then."""
    left: bool = False
    """Whether it asks no more, and one that is not known may take its place."""

    @property
    def until(self) -> float:
        return self.at + min(KNOWN_FOR, max(WANTS_FOR, SLOWER * self.per_message * self.has))


class Wanting:
    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        """The one that asked least recently first."""

    def ask(self, requester: str, n: int, held: int, unused: int, now: float, *, ahead: bool = False) -> bool:
        """Returns whether this changes at once what each may have: it wanted nothing until now, or less. `ahead`: it
        works on what it had, and asks again when that is done, unless it is granted any."""
        known = self._known.pop(requester, None)
        per_message, since, had = 0.0, now, held
        if known is not None:
            done = known.had - unused
            per_message = (now - known.since) / done if done > 0 else known.per_message
            if ahead:
                since, had = known.since, done
        self._known[requester] = _Known(now, held + n, held, per_message, since, had)
        if len(self._known) > MOST_REQUESTERS:
            del self._known[next(iter(self._known))]
        return known is None or held + n > known.wants or now >= known.until

    def leave(self, requester: str, now: float) -> None:
        """It asks no more. Its part is kept for a moment for one that takes its place."""
        if (known := self._known.pop(requester, None)) is not None:
            self._known[requester] = _Known(now, known.wants, 0, 0.0, now, 0, left=True)

    def takes_place(self, now: float) -> bool:
        """Whether one that is not known takes the place of one that left: just now, or of the last one of all. Then
        nobody else can take it."""
        places = [name for name, known in self._known.items() if known.left and now - known.at < KNOWN_FOR]
        if not places or (now >= self._known[places[-1]].until and self.any(now)):
            return False
        del self._known[places[-1]]
        return True

    def grant(self, requester: str, n: int) -> None:
        if (known := self._known.get(requester)) is not None:
            known.has += n
            known.since, known.had = known.at, known.has

    def limit(self, before: float, inflight: int) -> None:
        """Who asked last before that moment has no more than is in flight."""
        for known in self._known.values():
            if known.at >= before:
                return
            known.has, known.had = min(known.has, inflight), min(known.had, inflight)

    def is_known(self, requester: str, now: float) -> bool:
        return (known := self._known.get(requester)) is not None and not known.left and now - known.at < KNOWN_FOR

    def wants(self, now: float) -> dict[str, int]:
        return {name: known.wants for name, known in self._known.items() if now < known.until}

    def any(self, now: float) -> bool:
        return any(now < known.until for known in reversed(self._known.values()))
