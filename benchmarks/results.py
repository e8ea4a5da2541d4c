"""The file benchmarks/results.json: what the benchmarks measured, when, and on what."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from benchmarks.figures import Figure

HERE = Path(__file__).parent
RESULTS, BEFORE = HERE / "results.json", HERE / "results_before.json"
"""The newest results, and those before the work on cost: `python -m benchmarks --out FILE` writes such a file."""
PACKAGES = ("nats-backpressure", "nats-py", "msgspec", "uvloop", "prometheus-client")


class Machine(Struct, frozen=True):
    """What the benchmarks ran on."""

    processor: str
    cores: int
    system: str
    python: str
    nats_server: str
    packages: dict[str, str]
    """Name -> version; a package that is not installed is left out."""
    commit: str = ""
    """Of the runs that name none of their own."""


class Run(Struct, frozen=True):
    """One run of one benchmark."""

    started: str
    """UTC."""
    load: tuple[float, float, float]
    """The load average of the machine when it started, over 1, 5 and 15 minutes."""
    seconds: float
    figures: dict[str, Figure]
    commit: str = ""
    """Of the code that was measured, with `+` where files differ from it; empty where git does not know."""
    processor: str = ""
    """That it ran on; empty: the machine's."""


class Results(Struct, frozen=True):
    size: str
    machine: Machine
    runs: dict[str, Run]
    """Name of the benchmark -> its run."""


def load(path: Path = RESULTS) -> Results | None:
    """The results in a file; None if there is none."""
    return msgspec.json.decode(path.read_bytes(), type=Results) if path.exists() else None


def kept_runs(results: Results) -> dict[str, Run]:
    """Its runs for a file with newer ones, each with the commit that it measured and the processor that it ran on."""
    on = results.machine
    return {
        name: replace(run, commit=run.commit or on.commit, processor=run.processor or on.processor)
        for name, run in results.runs.items()
    }


def store(results: Results, path: Path = RESULTS) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def utc_now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> Machine:
    return Machine(
        processor=_processor(),
        cores=os.cpu_count() or 0,
        system=platform.platform(),
        python=platform.python_version(),
        nats_server=_server(),
        packages=_packages(),
    )


def commit() -> str:
    """Of the code as it is now; what was measured before may be in RESULTS, which is no code."""
    try:
        named, changed = (
            subprocess.run(["git", "-C", str(HERE), *arguments], capture_output=True, text=True)
            for arguments in (
                ("describe", "--always", "--exclude=*"),
                ("diff", "--quiet", "HEAD", "--", ":/", f":(exclude,top){HERE.name}/{RESULTS.name}"),
            )
        )
    except OSError:
        return ""
    return named.stdout.strip() + "+" * (named.returncode == 0 and changed.returncode == 1)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def _server() -> str:
    binary = Path(sys.executable).parent / "nats-server"
    answer = subprocess.run([binary if binary.exists() else "nats-server", "--version"], capture_output=True, text=True)
    return answer.stdout.rpartition(" ")[2].strip()


def _packages() -> dict[str, str]:
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
