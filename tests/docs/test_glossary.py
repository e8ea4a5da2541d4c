"""The glossary: each word has one meaning, and the module it names exists."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = re.findall(
    r"^\| (?!word |---)(.+?) \| (.+?) \| `(.+?)` \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("word", "module"), [(word, module) for word, _, module in ROWS])
def test_the_module_of_a_word_exists(word: str, module: str) -> None:
    path = ROOT / "sidecar/nats_backpressure" / module.replace(".", "/")
    assert path.with_suffix(".py").exists(), f"docs/glossary.md names {module} for '{word}': it was moved or renamed"


def test_each_word_has_one_meaning() -> None:
    words = Counter(word for row, _, _ in ROWS for word in row.split(", "))
    assert len(words) >= 40
    assert max(words.values()) == 1, f"two meanings: {[word for word, times in words.items() if times > 1]}"
