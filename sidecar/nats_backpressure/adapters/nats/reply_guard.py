"""ReplyGuard: decides once for each requester, not for each request, whether its reply subjects are inboxes."""

from __future__ import annotations

from collections.abc import Sequence

from nats_backpressure.protocol.reply_limits import reply_allowed, reply_prefix_allowed

REQUESTERS, LONGEST = 1024, 256
"""Requesters that are remembered, the oldest is dropped first; bytes of the longest prefix that is."""


class ReplyGuard:
    """Whether this service publishes to a subject. We reply with our own rights, so only inboxes are allowed."""

    def __init__(self, prefixes: Sequence[str] = ()) -> None:
        """`prefixes` of reply subjects that are allowed besides the usual inboxes."""
        self._prefixes = tuple(prefixes)
        self._requesters: dict[bytes, str] = {}
        """Allowed prefixes of reply subjects, as text."""

    def allows(self, reply: str) -> bool:
        return self.requester(reply.encode(errors="surrogatepass")) is not None

    def requester(self, reply: bytes) -> str | None:
        """The reply subject without its last token, which differs from request to request; None if it is no inbox."""
        prefix, _, last = reply.rpartition(b".")
        requester = self._requesters.get(prefix)
        if requester is not None and last.isalnum():
            return requester
        try:
            text = reply.decode()
        except UnicodeDecodeError:
            return None
        if not reply_allowed(text, self._prefixes):
            return None
        requester = text.rpartition(".")[0]
        if len(prefix) <= LONGEST and reply_prefix_allowed(requester, self._prefixes):
            if len(self._requesters) >= REQUESTERS:
                del self._requesters[next(iter(self._requesters))]
            self._requesters[prefix] = requester
        return requester
