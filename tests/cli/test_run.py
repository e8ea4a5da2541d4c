"""`run`: what ends it before it starts. The running process is tested in tests/process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from nats_backpressure.cli.run import run


def test_a_bad_settings_file_is_one_line_for_each_mistake_and_exit_78(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("nmae: other\n")
    ran = CliRunner().invoke(run, ["--config", str(file)])
    assert ran.exit_code == 78 and ran.stderr.startswith(f"{file}:1: nmae: unknown key")


def test_a_recording_that_cannot_be_written_is_one_line_and_exit_78(tmp_path: Path) -> None:
    ran = CliRunner().invoke(run, ["--record", str(tmp_path)])
    assert ran.exit_code == 78
    assert ran.stderr == f"--record: {tmp_path}: cannot be written: is a directory\n"


def test_the_record_limit_is_at_least_one_mebibyte() -> None:
    ran = CliRunner().invoke(run, ["--record-limit", "0"])
    assert ran.exit_code == 2 and "--record-limit" in ran.stderr
