"""Whether two creation times can be of one consumer: as the server's texts, and in the marks that are stored."""

from __future__ import annotations

from zlib import crc32

from nats_backpressure.protocol.timestamps import parse_rfc3339

SAME_CREATION = 1.0
"""Seconds by which the creation time of one consumer may differ: servers before 2.12 report it a tenth of a millisecond
or so later after their first restart, since they store another clock reading than they report at first."""
TIME_BITS, SUM_BITS = 29, 23
"""A mark is a 1, a checksum, and milliseconds, which begin again after six days: in all 53 bits, which every reader of
JSON has exactly."""
CHECKSUM_BITS = 32
"""What earlier builds stored in place of a mark: it is no longer than this."""


def may_be_one(was: str, now: str) -> bool:
    """Whether two creation times can be of one consumer."""
    before, after = parse_rfc3339(was), parse_rfc3339(now)
    return was == now if before is None or after is None else abs(after - before) < SAME_CREATION


def mark(created: str, *equal: str) -> int:
    """A number to compare with `marks_match`: of when a consumer was created, and of what must be equal beside
    it. Equal marks are of creations within a millisecond."""
    at = parse_rfc3339(created)
    what = (created if at is None else "", *equal)
    checksum = crc32("\n".join(what).encode(errors="replace")) % (1 << SUM_BITS)
    return (1 << SUM_BITS | checksum) << TIME_BITS | int((at or 0.0) * 1000) % (1 << TIME_BITS)


def marks_match(one: int, other: int) -> bool:
    """Whether two marks can be of one consumer, and what must be equal is."""
    apart = (one - other) % (1 << TIME_BITS)
    return one >> TIME_BITS == other >> TIME_BITS and min(apart, (1 << TIME_BITS) - apart) < SAME_CREATION * 1000


def is_of_another(stored: int, made: int) -> bool:
    """Whether what was stored is of another consumer; where an earlier build stored it, that is not known."""
    return stored >> CHECKSUM_BITS != 0 and not marks_match(stored, made)
