"""Finding: what one check found, what that costs, and the line that ends it; and the exit code of all findings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from msgspec import Struct

Level = Literal["ok", "note", "unknown", "warning", "error"]
"""`note`: it may be as wanted. `unknown`: it could not be looked at; another finding has the cause."""
EXIT_CODES: Final[dict[Level, int]] = {"ok": 0, "note": 0, "unknown": 0, "warning": 1, "error": 2}


class Finding(Struct, frozen=True):
    """One result of a check."""

    level: Level
    problem: str
    """What is wrong; with `ok`, what was found right."""
    cost: str = ""
    """What does not work, or works less well, because of it."""
    remedy: str = ""
    """The line that ends it: a command, a setting, or what to do."""


class Checked(Struct, frozen=True):
    """A finding with the name of its check."""

    check: str
    level: Level
    problem: str
    cost: str
    remedy: str


def note(problem: str, cost: str, remedy: str) -> Finding:
    return Finding("note", problem, cost, remedy)


def warning(problem: str, cost: str, remedy: str) -> Finding:
    return Finding("warning", problem, cost, remedy)


def error(problem: str, cost: str, remedy: str) -> Finding:
    return Finding("error", problem, cost, remedy)


def unknown(why: str) -> Finding:
    return Finding("unknown", f"not looked at: {why}")


def exit_code(findings: Iterable[Checked]) -> int:
    """0 where all is right, 1 with warnings, 2 with errors."""
    return max((EXIT_CODES[finding.level] for finding in findings), default=0)
