"""What is in the image: labels, user, and exactly the packages that constraints.txt pins."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from nats_backpressure import __version__

pytestmark = [pytest.mark.containers, pytest.mark.timeout(500)]

ROOT = Path(__file__).resolve().parents[2]
LIST = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"


def test_its_labels_and_its_user(docker: str, sidecar_image: str) -> None:
    done = subprocess.run([docker, "inspect", sidecar_image], check=True, capture_output=True, text=True)
    config = json.loads(done.stdout)[0]["Config"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert {"title", "description", "licenses", "base.name", "version", "revision", "created"} <= labels.keys()
    assert (labels["title"], labels["licenses"], labels["version"]) == ("nats-backpressure", "Apache-2.0", "test")
    assert config["User"] == "65532:65532"
    assert (config["Entrypoint"], config["Cmd"]) == (["nats-backpressure"], ["run"])


def test_its_packages_are_pinned_and_nothing_can_install_more(docker: str, sidecar_image: str) -> None:
    run = [docker, "run", "--rm", "--network=none", "--read-only", "--entrypoint=python3"]
    done = subprocess.run([*run, sidecar_image, "-c", LIST], check=True, capture_output=True, text=True)
    packages = {line.lower().replace("_", "-") for line in done.stdout.split()}
    lines = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").splitlines()
    assert packages - set(lines) == {f"nats-backpressure=={__version__}"}


def test_it_needs_no_shell_and_has_the_schemas_of_its_messages(docker: str, sidecar_image: str) -> None:
    no_shell = [f"--volume=/dev/null:/usr/bin/{shell}:ro" for shell in ("dash", "bash")]
    command = [docker, "run", "--rm", "--network=none", "--read-only", *no_shell, sidecar_image, "schema", "Decision"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == json.loads((ROOT / "docs/schemas/Decision.json").read_text())
