"""FakeHintSource: what a replica has subscribed to of the ack metrics and advisories of a simulated server."""

from __future__ import annotations

from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.observations import Hint


class FakeHintSource:
    """A HintSource; what it does not have the right to is `denied`."""

    def __init__(self) -> None:
        self.streams: frozenset[str] | None = None
        self.denied = False

    def follow(self, streams: frozenset[str] | None) -> None:
        self.streams = streams

    def allowed(self) -> bool:
        return not self.denied

    def gets(self, hint: Hint) -> bool:
        """Whether this hint comes here."""
        key = getattr(hint, "key", None)
        if not isinstance(key, ConsumerKey):
            return True
        return not self.denied and (self.streams is None or key.stream in self.streams)
