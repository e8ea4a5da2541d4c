"""Formats what findings name: lists of names that end somewhere, numbers of things, durations and moments."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

from nats_backpressure.protocol.timestamps import format_rfc3339

SHOWN: Final = 5
"""Names in one finding; further ones are counted."""

COMPARED: Final = 1000
"""Names that one is compared with: each takes some 20 µs."""


def names(all_names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed = list(all_names)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def count(n: int, thing: str) -> str:
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def closest(name: str, existing: Sequence[str]) -> str:
    """A question that suggests an existing name that is like this one; empty where there is none."""
    close = difflib.get_close_matches(name, existing[:COMPARED], 1)
    return f" (did you mean {close[0]}?)" if close else ""


def moment(seconds: float) -> str:
    return format_rfc3339(seconds)
