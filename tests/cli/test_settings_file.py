"""A settings file that cannot be used ends a command with 78 and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from nats_backpressure.cli.settings_file import EX_CONFIG, load_or_exit


def test_a_valid_file_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("name: other\n")
    assert load_or_exit(file).name == "other"


def test_each_mistake_is_one_line_and_the_exit_code_is_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("nmae: other\nwatch: 5\n")
    with pytest.raises(SystemExit) as stopped:
        load_or_exit(file)
    assert stopped.value.code == EX_CONFIG == 78
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"{file}:") for line in lines)
