"""Where a reply may go: we publish it with our own rights, so nowhere but to an inbox."""

from __future__ import annotations

from collections.abc import Sequence


def reply_allowed(reply: str, prefixes: Sequence[str] = ()) -> bool:
    """Whether `reply` is an inbox (`_INBOX`, `_INBOX_*`), a service import (`_R_`), or under one of `prefixes`."""
    tokens = reply.split(".")
    if tokens[0] == "_GR_":  # a gateway puts itself, cluster and server in front of the asker's own inbox
        tokens = tokens[3:]
    if len(tokens) < 2 or any(not t or t in ("*", ">") or not t.isprintable() or " " in t for t in tokens):
        return False
    if tokens[0] in ("_INBOX", "_R_") or tokens[0].startswith("_INBOX_"):
        return True
    return any(tokens[: len(own)] == own for own in (prefix.rstrip(".").split(".") for prefix in prefixes))
