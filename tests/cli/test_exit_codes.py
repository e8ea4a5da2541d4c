"""Every exit code that docs/operations.md lists, in a process of its own that ends with it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

import nats
import pytest

from nats_backpressure.cli import BROKEN_PIPE, INTERRUPTED
from tests.conftest import StartServer

PAGE = (Path(__file__).parents[2] / "docs/operations.md").read_text().partition("\n## Exit codes\n")[2]
DOCUMENTED = set(re.findall(r"^\| (\d+) \| (.+?) \|", PAGE, re.MULTILINE))
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "BACKPRESSURE_"))}
NOWHERE = "nats://127.0.0.1:1"
SETTINGS: Final = {
    "good.yaml": "name: team",
    "bad.yaml": "nmae: team",
    "misspelt.yaml": "watch: [{stream: ORDRES}]",
    "no-recording": "not one line of a recording\n",
}

CASES = [
    (0, "all", "schema"),
    (1, "run", "run --embedded --embedded-store no-recording"),
    (1, "doctor", "doctor --config misspelt.yaml"),
    (1, "all others", f"status -s {NOWHERE}"),
    (2, "doctor", "doctor"),
    (2, "all others", "status a..b"),
    (65, "replay", "replay no-recording"),
    *(
        (78, "`run`, `check`, `doctor`, `record`, `replay`", command)
        for command in (
            "run --config bad.yaml",
            "check bad.yaml",
            "doctor --config bad.yaml",
            "record --config bad.yaml out",
            "replay --config bad.yaml no-recording",
        )
    ),
]
OTHERWISE = {(INTERRUPTED, "all"), (BROKEN_PIPE, "all")}
"""With tests of their own."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, text in SETTINGS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def ended(directory: Path, command: str, url: str = NOWHERE) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "nats_backpressure", *command.split()]
    env = PLAIN | {"NATS_URL": url}
    return subprocess.run(arguments, cwd=directory, env=env, capture_output=True, text=True, timeout=60)


def test_every_code_of_the_page_has_a_case() -> None:
    tested = {(code, of) for code, of, _ in CASES} | OTHERWISE
    assert {(int(code), of if ", `" in of else of.strip("`")) for code, of in DOCUMENTED} == tested


@pytest.mark.parametrize(("code", "of", "command"), CASES, ids=[command for _, _, command in CASES])
async def test_a_command_ends_with_its_code_and_no_traceback(
    directory: Path, start_server: StartServer, code: int, of: str, command: str
) -> None:
    url = NOWHERE
    if "misspelt" in command:
        url = (await start_server()).url
        async with await nats.connect(url) as nc:
            await nc.jetstream().add_stream(name="ORDERS", subjects=["orders"])
    ran = ended(directory, command, url)
    assert ran.returncode == code, ran.stderr
    assert "Traceback" not in ran.stderr + ran.stdout
    assert (ran.stderr + ran.stdout).strip(), "what is wrong is named"


def test_an_interrupt_ends_a_command_that_waits(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "nats_backpressure", "status", "--timeout", "60s"],
            env=PLAIN | {"NATS_URL": url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            assert (process.communicate(timeout=60), process.returncode) == ((b"", b""), INTERRUPTED)
