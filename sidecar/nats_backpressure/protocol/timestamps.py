"""Times as text, RFC 3339 in UTC, from and to Unix seconds; and the pair of clocks that `now` is."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, NamedTuple

EXAMPLE: Final = "2026-11-23T14:05:00.000Z"
_UNIX: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TEXT: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?Z", re.ASCII)


def parse_rfc3339(text: str) -> float | None:
    """Unix seconds of a time from 1970 on, with up to nine decimals of a second; None for anything else."""
    if (match := _TEXT.fullmatch(text)) is None:
        return None
    *parts, decimals = match.groups(default="0")
    try:
        whole = datetime(*map(int, parts), tzinfo=UTC)  # type: ignore[arg-type, misc]
    except ValueError:
        return None
    return whole.timestamp() + int(decimals) / 10.0 ** len(decimals) if whole >= _UNIX else None


def format_rfc3339(unix: float) -> str:
    """A time from 1970 on, to the millisecond."""
    return _format_milliseconds(round(unix * 1000))


@lru_cache(maxsize=1024)  # many subjects are read at the same moment
def _format_milliseconds(milliseconds: int) -> str:
    time = _UNIX + timedelta(milliseconds=milliseconds)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Now(NamedTuple):
    """One time on two clocks: `mono` (seconds) measures durations, `wall` (Unix seconds) is shown to people, and what
    ends at a given time of day is compared with it."""

    mono: float
    wall: float
