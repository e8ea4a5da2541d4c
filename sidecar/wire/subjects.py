"""Subjects as tails and keys, and the names that follow from the installation's name."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.patterns import encode

__all__ = ["LONGEST_TAIL", "BadTail", "Names", "decode", "encode", "is_literal"]

LONGEST_TAIL = 1024
"""Bytes of an encoded subject; a longer one is not watched."""


class BadTail(ValueError):
    """A tail that is not the one canonical form of a subject; the text says where."""


def decode(tail: str) -> str:
    """The subject a tail stands for. Raises BadTail unless `encode` gives back the very same tail."""
    if len(tail) > LONGEST_TAIL:
        raise BadTail(f"tail of {len(tail)} bytes is longer than {LONGEST_TAIL}")
    raw = bytearray()
    i = 0
    while i < len(tail):
        if tail[i] != "=":
            raw += tail[i].encode()
            i += 1
            continue
        pair = tail[i + 1 : i + 3]
        if len(pair) != 2 or any(c not in "0123456789ABCDEF" for c in pair):
            raise BadTail(f"`={pair}` at byte {i} is no `=XX` with two upper-case hex digits")
        raw.append(int(pair, 16))
        i += 3
    try:
        subject = raw.decode()
    except UnicodeDecodeError:
        raise BadTail("tail does not decode to UTF-8") from None
    if "" in subject.split("."):
        raise BadTail("tail has an empty token")
    # Not the cached form: what an asker makes up must not fill our memory.
    if (canonical := encode.__wrapped__(subject)) != tail:
        raise BadTail(f"not the canonical form; it is `{canonical[:120]}`")
    return subject


def is_literal(subject: str) -> bool:
    """Whether a subject has no wildcard token."""
    return not any(token in ("*", ">") for token in subject.split("."))


@dataclass(frozen=True)
class Names:
    """Everything that is named after the installation."""

    name: str = "backpressure"

    @property
    def prefix(self) -> str:
        return f"{self.name}.v1"

    @property
    def events_stream(self) -> str:
        return f"{self.name.upper()}_EVENTS"

    @property
    def state_bucket(self) -> str:
        return f"{self.name}_state"

    @property
    def policy_bucket(self) -> str:
        return f"{self.name}_policy"

    @property
    def lease_bucket(self) -> str:
        return f"{self.name}_lease"

    @property
    def ours(self) -> frozenset[str]:
        """The streams that are ours and never watched unless named."""
        buckets = (self.state_bucket, self.policy_bucket, self.lease_bucket)
        return frozenset({self.events_stream, *(f"KV_{b}" for b in buckets)})

    def event(self, kind: str, subject: str) -> str:
        return f"{self.prefix}.event.{kind}.{encode(subject)}"

    def heartbeat_key(self, group: str) -> str:
        return f"=heartbeat.{group}"
