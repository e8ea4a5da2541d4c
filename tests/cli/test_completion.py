"""The printed scripts complete commands and options in real shells: bash and zsh on a terminal, fish by its command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.debian import unpacked
from tests.support.terminal import Terminal

BIN = Path(sys.executable).parent
TYPED = [
    pytest.param("nats-backpressure sta", "nats-backpressure status", id="a command"),
    pytest.param("nats-backpressure policy l", "nats-backpressure policy ls", id="a command of a group"),
    pytest.param("nats-backpressure status --wa", "nats-backpressure status --watch", id="an option"),
]


def script(shell: str, directory: Path) -> Path:
    ran = subprocess.run([BIN / "nats-backpressure", "completion", shell], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    file = directory / f"completion.{shell}"
    file.write_text(ran.stdout)
    return file


def environment(directory: Path, **more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "BASH_"))}
    return plain | {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(directory), "LC_ALL": "C.UTF-8"} | more


def completed(command: list[str], env: dict[str, str], setup: str, typed: str) -> str:
    """What stands in the command line after Tab: an `echo` is put before it (Ctrl-A), and a file behind (Ctrl-E)."""
    file = Path(env["HOME"]) / "line"
    with Terminal(command, env, columns=300) as terminal:
        terminal.type(f"{setup}; echo $((40 + 2))ready\n")
        terminal.until("42ready")
        terminal.type(f"{typed}\t\x01echo \x05> {file}; echo $((40 + 3))done\n")
        terminal.until("43done")
    return file.read_text().strip()


@pytest.mark.parametrize(("typed", "line"), TYPED)
def test_bash_completes(tmp_path: Path, typed: str, line: str) -> None:
    command = ["bash", "--noprofile", "--norc", "-i"]
    assert completed(command, environment(tmp_path), f"source {script('bash', tmp_path)}", typed) == line


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "line"), TYPED)
def test_zsh_completes(tmp_path: Path, typed: str, line: str) -> None:
    root = unpacked("zsh")
    (modules,) = root.glob("usr/lib/*/zsh/*")
    functions = " ".join(str(each) for each in root.glob("usr/share/zsh/functions/**") if each.is_dir())
    setup = (
        f"module_path=({modules}); fpath=({functions}); autoload -Uz compinit; compinit -u -D; "
        f"source {script('zsh', tmp_path)}"
    )
    assert completed([str(root / "bin/zsh"), "-f", "-i"], environment(tmp_path), setup, typed) == line


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "line"), TYPED)
def test_fish_completes(tmp_path: Path, typed: str, line: str) -> None:
    root = unpacked("fish")
    libraries = ":".join(map(str, root.glob("usr/lib/*/")))
    command = f"source {script('fish', tmp_path)}; complete -C '{typed}'"
    env = environment(tmp_path, LD_LIBRARY_PATH=libraries)
    program = shutil.which("fish") or str(root / "usr/bin/fish")
    ran = subprocess.run([program, "--no-config", "-c", command], capture_output=True, text=True, env=env, timeout=60)
    assert line.split()[-1] in [each.split("\t")[0] for each in ran.stdout.splitlines()], ran
