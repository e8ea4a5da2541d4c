"""Moments as people write them, RFC 3339 in UTC, from and to Unix seconds. (The calendar is done by hand because the
standard library's comes with a clock, and the core has none.)"""

from __future__ import annotations

from typing import Final, NamedTuple

EXAMPLE: Final = "2026-11-23T14:05:00.000Z"
_DAY_MS: Final = 86_400_000


def parse_rfc3339(text: str) -> float | None:
    """Unix seconds of a moment from 1970 on, with up to nine decimals of a second; None for anything else."""
    head, dot, tail = text.removesuffix("Z").partition(".")
    if not text.endswith("Z") or len(head) != 19 or len(tail) > 9 or bool(dot) != bool(tail):
        return None
    parts = head[:4], head[5:7], head[8:10], head[11:13], head[14:16], head[17:]
    if head != "{}-{}-{}T{}:{}:{}".format(*parts) or not all(_digits(part) for part in (*parts, tail or "0")):
        return None
    year, month, day, hour, minute, second = map(int, parts)
    if year < 1970 or not 1 <= month <= 12 or hour > 23 or minute > 59 or second > 59:
        return None
    if not 1 <= day <= _days(year + month // 12, month % 12 + 1, 1) - _days(year, month, 1):
        return None
    whole = _days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
    return whole + int(tail or "0") / 10.0 ** len(tail)


def format_rfc3339(unix: float) -> str:
    """A moment from 1970 on, to the millisecond."""
    days, left = divmod(round(unix * 1000), _DAY_MS)
    year, month, day = _date(days)
    seconds, ms = divmod(left, 1000)
    return f"{year:04}-{month:02}-{day:02}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}Z"


def _digits(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _days(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01 (Hinnant, `days_from_civil`): the year begins in March, so that a leap day ends it."""
    year -= month <= 2
    of_year = (153 * ((month - 3) % 12) + 2) // 5 + day - 1
    return 365 * year + year // 4 - year // 100 + year // 400 + of_year - 719_468


def _date(days: int) -> tuple[int, int, int]:
    """The other way round (Hinnant, `civil_from_days`): eras of 400 years repeat."""
    era, of_era = divmod(days + 719_468, 146_097)
    of_years = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * of_years + of_years // 4 - of_years // 100)
    march = (5 * of_year + 2) // 153
    month = (march + 2) % 12 + 1
    return era * 400 + of_years + (month <= 2), month, of_year - (153 * march + 2) // 5 + 1


class Now(NamedTuple):
    """One moment on two clocks: `mono` (seconds) measures durations, `wall` (Unix seconds) is shown to people."""

    mono: float
    wall: float
