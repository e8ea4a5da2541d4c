"""A decision that replaces or changes an older one is named there: who reads that one first is not misled."""

from __future__ import annotations

import re
from pathlib import Path

from nats_backpressure.policy.active import JUDGING_RULES

PAGE = Path(__file__).parents[2] / "docs" / "decisions.md"
STATUSES = {int(n): text for n, text in re.findall(r"^## (\d+)\. .*\n\n\*(.*)\*$", PAGE.read_text(), re.MULTILINE)}
"""What stands under the heading of each."""


def numbers(text: str, verbs: str) -> set[int]:
    """The decisions that the parts of a status with one of these verbs name; what is in brackets are no numbers."""
    text = re.sub(r" \([^)]*\)", "", text)
    parts = [part for part in re.split(r"[.;] ", text) if re.search(rf"\b({verbs})\b", part, re.IGNORECASE)]
    return {int(n) for part in parts for n in re.findall(r"(?<![-\w.])\d{1,3}(?![-\w])", part)}


def test_every_decision_has_a_status() -> None:
    assert list(STATUSES) == list(range(1, PAGE.read_text().count("\n## ") + 1))


def test_a_decision_names_those_that_replace_or_change_it() -> None:
    unnamed = {
        (older, newer)
        for newer, text in STATUSES.items()
        for older in numbers(text, "supersedes|replaces|changes|refines")
        if str(newer) not in re.findall(r"\d+", STATUSES[older])
    }
    assert not unnamed, "(older, newer)"


def test_a_decision_that_supersedes_says_so_too() -> None:
    unnamed = {
        (older, newer)
        for older, text in STATUSES.items()
        for newer in numbers(text, "superseded|replaced|refined")
        if str(older) not in re.findall(r"\d+", STATUSES[newer])
    }
    assert not unnamed, "(older, newer)"


def test_the_version_of_the_rules_of_judging_is_the_last_one_decided() -> None:
    """One that changes what a sample comes to, and does not raise it, has replicas of two versions write against each
    other."""
    decided = [int(n) for n in re.findall(r"`JUDGING_RULES` is (\d+)", PAGE.read_text())]
    assert decided == list(range(2, JUDGING_RULES + 1))
