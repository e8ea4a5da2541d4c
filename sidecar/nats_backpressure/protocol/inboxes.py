"""The prefix of each role's inboxes: who may subscribe to `_INBOX.>` receives what is sent to everybody else's."""

from __future__ import annotations

from typing import Final

SHARED: Final = "_INBOX"
"""What a client uses that sets no prefix."""


def inbox_of(role: str) -> str:
    """The prefix that the printed rights give to a role (`_INBOX_gateway`)."""
    return f"{SHARED}_{role}"
