"""Output that ends early, is full or is closed: one line at most and a documented exit code, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from nats_backpressure.cli import BROKEN_PIPE, COMMANDS, INTERRUPTED, main

PROGRAM = [sys.executable, "-m", "nats_backpressure"]
PRINTING = pytest.mark.parametrize("printing", ["schema", "--help"])


@PRINTING
def test_a_reader_that_has_ended_ends_the_command_as_sigpipe_does(printing: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([*PROGRAM, printing], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (BROKEN_PIPE, "")


@PRINTING
@pytest.mark.parametrize(
    ("output", "code", "error"),
    [
        pytest.param(">/dev/full", 1, "Error: the output cannot be written: no space left on device\n", id="full"),
        pytest.param(">&-", 0, "", id="closed"),
    ],
)
def test_output_that_cannot_be_written_has_no_traceback(printing: str, output: str, code: int, error: str) -> None:
    ran = subprocess.run(["bash", "-c", f"{' '.join(PROGRAM)} {printing} {output}"], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (code, error)


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_a_command_is_loaded_has_no_traceback(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nats_backpressure.cli.import_module", interrupted)
    ran = CliRunner().invoke(main, [command])
    assert (ran.exit_code, ran.output) == (INTERRUPTED, "")


def test_the_help_and_the_page_have_every_exit_code() -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text().partition("## Exit codes")[2]
    for code in (0, 1, 2, 65, 78, 130, BROKEN_PIPE):
        assert f"{code} " in (main.help or "").partition("Exit codes")[2]
        assert f"| {code} |" in page
