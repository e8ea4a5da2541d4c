"""While no version is released, nobody is told to install one from a package index."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FROM_AN_INDEX = re.compile(r"pip install [^`\n]*\bnats-backpressure(\[|\b(?![-./]))")


def test_what_is_not_released_is_installed_from_a_checkout() -> None:
    released = "(unreleased)" not in re.findall(r"^## .+", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    files = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")]
    files += [*ROOT.glob("sidecar/**/*.py"), *ROOT.glob("docs/**/*.py")]
    telling = [str(file.relative_to(ROOT)) for file in files if FROM_AN_INDEX.search(file.read_text())]
    assert released or telling == [], "no package index has it yet"
