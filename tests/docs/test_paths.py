"""The files that pages name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = (ROOT, ROOT / "sidecar/nats_backpressure", ROOT / "docs")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`([\w/.-]+/[\w.-]+\.(?:py|md|yaml)|app\.py)`", page.read_text())
    missing = {path for path in named if not any((place / path).exists() for place in PLACES)}
    assert not missing, f"{page.name} names files that were moved or renamed: {sorted(missing)}"
