"""Computes the freshness of a subject: known, stale or unknown, by the age of its proofs."""

from __future__ import annotations

import math
from collections.abc import Iterable

from msgspec import Struct

from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.proofs import NO_PROOFS, Proofs, newest_proof
from nats_backpressure.protocol.refusal_expiry import MISSED
from nats_backpressure.protocol.values import Freshness, Status


class Limits(Struct, frozen=True):
    """Seconds without proof after which a subject is stale, and after which it is unknown."""

    stale_after: float
    unknown_after: float
    interval: float = 0.0
    """Seconds between two proofs, for a reader of the stream or a client that watches the heartbeat."""


def limits(stale_after: float, unknown_after: float, interval: float, heartbeat: float = 0.0) -> Limits:
    """The limits in force: never shorter than three readings for stale, and twice that for unknown. `interval` and
    `heartbeat` are the seconds between two readings, and between two heartbeats."""
    stale = max(stale_after, MISSED * interval)
    return Limits(stale, max(unknown_after, 2 * stale), max(interval, heartbeat))


def freshness(proof: float | None, now: float, limits: Limits) -> Freshness:
    """The freshness of something last proved at the monotonic time `proof`; None was never proved."""
    if proof is None or now - proof >= limits.unknown_after:
        return Freshness.UNKNOWN
    return Freshness.STALE if now - proof >= limits.stale_after else Freshness.KNOWN


class SinceProof(Struct, frozen=True):
    """The oldest and the newest proof among the members of a subject that count, in monotonic time."""

    oldest: float
    newest: float


def since_proof(members: Iterable[Member], proofs: Proofs = NO_PROOFS) -> SinceProof | None:
    """Of the members that were ever read; None if none was. One that only keeps its stored status is older than any."""
    oldest, newest = math.inf, -math.inf
    for member in members:
        if (proof := newest_proof(member, proofs)) is not None:
            oldest, newest = min(oldest, proof), max(newest, proof)
        elif member.status is not Status.UNKNOWN:
            oldest = -math.inf
    return None if newest == -math.inf else SinceProof(oldest, newest)


def status_proof(members: Iterable[Member], proofs: Proofs = NO_PROOFS) -> float | None:
    """Monotonic time at which the status of a subject was last proved; None if no member was ever evaluated.

    A status above inactive is as certain as the newest proof of any member that has it: the others can only make it
    worse. Inactive needs all members, so the oldest proof counts. A member that was restored and not read since counts
    from when it was restored.
    """
    evaluated = [member for member in members if member.status is not Status.UNKNOWN]
    top = max([member.status for member in evaluated], default=Status.UNKNOWN)
    times = [
        member.joined_at if (proof := newest_proof(member, proofs)) is None else proof
        for member in evaluated
        if member.status is top
    ]
    if not times:
        return None
    return min(times) if top is Status.INACTIVE else max(times)


def subject_freshness(since: SinceProof | None, now: float, limits: Limits) -> Freshness:
    """The oldest proof makes a subject stale; it is unknown only when no member has any."""
    if since is None or freshness(since.newest, now, limits) is Freshness.UNKNOWN:
        return Freshness.UNKNOWN
    return Freshness.KNOWN if freshness(since.oldest, now, limits) is Freshness.KNOWN else Freshness.STALE


def known_until(since: SinceProof | None, limits: Limits) -> float:
    """Monotonic time at which a subject that is known is not any more, unless there is another proof."""
    return -math.inf if since is None else since.oldest + min(limits.stale_after, limits.unknown_after)
