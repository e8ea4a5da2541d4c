"""Names: the subject prefix, stream and buckets of an installation. Hands on the subject encoding of `patterns`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nats_backpressure.protocol.patterns import LONGEST_SUBJECT as LONGEST_TAIL
from nats_backpressure.protocol.patterns import BadTail, covers, decode, encode

__all__ = ["HEARTBEAT", "LONGEST_TAIL", "NAME", "BadTail", "Names", "covers", "decode", "encode", "is_literal"]

NAME = re.compile(r"[^\s.*>\x00-\x1f\x7f]{1,256}")
"""A valid name of a stream or consumer: it is one token of a subject."""
HEARTBEAT = "=heartbeat"
"""The key of the heartbeat in the state bucket; no subject encodes to it."""


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
    def internal(self) -> str:
        """Before the topic of a message between replicas."""
        return f"{self.prefix}.internal"

    @property
    def ours(self) -> frozenset[str]:
        """The streams that are ours and never watched unless named."""
        buckets = (self.state_bucket, self.policy_bucket)
        return frozenset({self.events_stream, *(f"KV_{b}" for b in buckets)})

    def event(self, kind: str, subject: str) -> str:
        return f"{self.prefix}.event.{kind}.{encode(subject)}"
