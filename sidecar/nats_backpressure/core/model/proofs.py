"""StreamProof: what looks at a stream prove of its consumers; and the newest proof of one member."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Final

from msgspec import Struct

from nats_backpressure.core.model.member import Member
from nats_backpressure.protocol.values import ConsumerKey


class StreamProof(Struct, frozen=True, gc=False):
    """What looks at one stream prove of its consumers: one that was idle is idle still while the stream did not move.
    Times are monotonic; the two sets are those of a plan, to be used at once."""

    idle: Set[ConsumerKey] = frozenset()
    """Consumers that were idle when last read, and no look since the one before that reading showed that the stream
    moved."""
    at: float = -math.inf
    """When the newest look was answered."""
    earlier: Set[ConsumerKey] = frozenset()
    """Those for which that held until the stream moved."""
    earlier_at: float = -math.inf
    """When the newest look before that was answered."""


Proofs = Mapping[str, StreamProof]
"""By stream."""
NO_PROOFS: Final[Proofs] = {}


def newest_proof(member: Member, proofs: Proofs) -> float | None:
    """Monotonic time of the newest proof of a member: its newest reading, or a look that shows the same; None if it was
    never read."""
    own = member.proof
    if own is None or (stream := proofs.get(member.key.stream)) is None:
        return own
    if member.key in stream.idle:
        return max(own, stream.at)
    return max(own, stream.earlier_at) if member.key in stream.earlier else own
