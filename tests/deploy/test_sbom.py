"""`make sbom` lists every part of the image, with its version and its licence."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from nats_backpressure import __version__
from tests.support.parts import need_command

ROOT = Path(__file__).resolve().parents[2]
DIRECT = {"nats-py", "msgspec", "structlog", "click", "rich", "pyyaml", "starlette", "uvicorn", "uvloop"}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_sbom_has_every_part_with_a_pinned_version_and_a_licence() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [need_command("make"), "sbom"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=360
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]

    sbom = json.loads((ROOT / "build/sbom/nats-backpressure.cdx.json").read_text())
    assert sbom["bomFormat"] == "CycloneDX"
    assert sbom["metadata"]["component"]["name"] == "nats-backpressure"
    parts = {part["name"].lower(): part["version"] for part in sbom["components"]}
    assert parts.pop("nats-backpressure", __version__) == __version__
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    normal = {name.replace("_", "-"): version for name, version in pinned.items()}
    assert parts.keys() >= DIRECT
    assert {name: normal.get(name.replace("_", "-")) for name in parts} == parts
    assert len((ROOT / "build/sbom/licences.txt").read_text().splitlines()) >= len(parts)
