"""One command runs the whole demo, and stops every process it started."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest


async def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "nats_backpressure", "demo", *arguments),
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 150)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("mode", ["none", "binary", "adaptive"])
async def test_the_demo_runs_an_overload_and_prints_its_summary(mode: str, tmp_path: Path) -> None:
    report = tmp_path / "run.html"
    wanted = ("--mode", mode, "--overload", "6", "--seconds", "3", "--json", "--report", str(report))
    code, out, err = await run(*wanted, NATS_URL="nats://127.0.0.1:1")  # whatever the shell has, it uses its own server
    # On a busy machine a client may log that the sidecar did not answer in time.
    assert code == 0 and "Traceback" not in err, err
    summary = json.loads(out.splitlines()[-1])
    assert (summary["mode"], summary["overload"], summary["lost"], summary["redelivered"]) == (mode, 6.0, 0, 0)
    assert summary["done"] > 50 and summary["goodput"] > 0 and summary["p99_seconds"] >= summary["p50_seconds"] > 0
    assert (summary["shed"] > 0) is (mode != "none")
    assert summary["status_changes"] == sum(
        summary["events"].get(kind, 0) for kind in ("backpressure_active", "backpressure_warning", "recovery")
    )
    assert "<polyline" in report.read_text()


async def test_a_report_path_that_is_a_directory_is_a_usage_error(tmp_path: Path) -> None:
    code, out, err = await run("--report", str(tmp_path), "--seconds", "1")
    assert (code, out) == (2, "") and "--report" in err
