"""What a type checker says of a user's program: nothing of a right one, and something of each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("user_program.py")
MISTAKES = {
    'role: Role = "gateway"': 'role: Role = "gatewai"',
    'priority="low", timeout': 'priority="lowest", timeout',
    'fixed("throttle"': 'fixed("drop"',
    "on_count=count": "on_count=show",
    "await client.on_event(show)": "await client.on_event(subject_of)",
    'priority="critical")': 'priority="hi")',
    "priority=priority_of": "priority=subject_of",
    'admit("orders.created", "critical")': 'admit("orders.created", "crit")',
    'client.admit(subject, priority="low")': 'client.admit(subject, priority="lo")',
    'Admit(client, "orders.{tenant}", priority="high")': 'Admit(client, "orders.{tenant}", priority="hi")',
    'return "high" if': 'return "urgent" if',
    'fixed("continue"': 'fixed("drop"',
    "client.start(wait=2.0)": "client.start(wait='2 s')",
    'priority="normal", wait': 'priority="no", wait',
}


def checked(program: Path, cache: Path) -> str:
    """What mypy prints, from outside of our project and without its settings."""
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, "--config-file=", program]
    return subprocess.run(command, cwd=program.parent, capture_output=True, text=True, timeout=170).stdout


@pytest.mark.slow
def test_a_users_program_passes_and_each_mistake_is_found(tmp_path: Path) -> None:
    text, program = PROGRAM.read_text(), tmp_path / "program.py"
    program.write_text(text)
    assert "Success" in (printed := checked(program, tmp_path / "cache")), printed
    for right, wrong in MISTAKES.items():
        assert text.count(right) == 1, right
        program.write_text(text.replace(right, wrong))
        line = text[: text.index(right)].count("\n") + 1
        assert f"program.py:{line}: error" in (printed := checked(program, tmp_path / "cache")), (wrong, printed)
