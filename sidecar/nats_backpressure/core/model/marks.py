"""The marks in force for one consumer, after its cap."""

from __future__ import annotations

from msgspec import Struct

SMALL_CAP = 10
"""A cap this small is reached whenever the worker works."""
SMALL_CAP_STALL = 5_000.0
"""Milliseconds without an ack after which in flight counts at such a cap too."""


class MarkSet(Struct, frozen=True, gc=False):
    """Three marks of one signal; a value must be above a mark, not at it, to exceed it."""

    warn: float
    critical: float
    overload: float


class Marks(Struct, frozen=True, gc=False):
    """The marks in force for one consumer, after its cap; `inflight` is None where the signal is absent."""

    pending: MarkSet
    inflight: MarkSet | None
    latency: MarkSet
    drain: MarkSet
