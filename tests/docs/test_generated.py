"""The generated parts of the pages agree with the code, and links between pages lead to a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import generate
from nats_backpressure.config import nats
from nats_backpressure.protocol.values import Diagnosis

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
LINK = re.compile(r"\]\((?!https?://|mailto:)([^)#\s]*)(#[^)\s]*)?\)")


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert generate.fill(text) == text, f"{_name(page)} differs from the code: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), f"{_name(page)} links to {path}, which does not exist"
        if anchor and target.suffix == ".md":
            assert anchor[1:] in _anchors(target), f"{_name(page)} links to {path}{anchor}: no such heading"


def test_every_environment_variable_of_nats_is_shown() -> None:
    assert set(generate.ENVIRONMENT.values()) == set(nats.VARIABLES)


def test_every_diagnosis_has_a_section_that_says_what_to_do_first() -> None:
    sections = re.split(r"^## ", (ROOT / "docs/diagnosis.md").read_text(), flags=re.MULTILINE)[1:]
    assert [section.split("\n")[0] for section in sections] == list(Diagnosis)
    assert all(f"<!-- generated: rule {section.split()[0]} -->" in section for section in sections)
    assert all("\nFirst: " in section for section in sections)
