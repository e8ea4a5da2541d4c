"""The Dockerfile keeps its promises, and the list of licences notices what may not be shipped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendering import DEPLOY, KUSTOMIZE

LINES = (DEPLOY / "Dockerfile").read_text().splitlines()


def test_both_stages_have_the_same_pinned_base() -> None:
    assert [line for line in LINES if line.startswith("FROM")] == ["FROM ${BASE} AS build", "FROM ${BASE}"]
    base = next(line for line in LINES if line.startswith("ARG BASE="))
    assert re.fullmatch(r"ARG BASE=python:3\.\d+\.\d+-slim-\w+", base), "to the last part of the version"


def test_it_runs_as_the_user_that_the_manifests_name_and_without_a_shell() -> None:
    patch = yaml.safe_load((KUSTOMIZE / "components/sidecar/patch.yaml").read_text())
    context = patch["spec"]["template"]["spec"]["initContainers"][0]["securityContext"]
    assert f"USER {context['runAsUser']}:{context['runAsGroup']}" in LINES
    assert 'ENTRYPOINT ["nats-backpressure"]' in LINES and 'CMD ["run"]' in LINES


def licences(tmp_path: Path, *components: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    sbom = tmp_path / "sbom.json"
    sbom.write_text(json.dumps({"components": [{"name": "a", "version": "1"} | c for c in components]}))
    command = [sys.executable, str(DEPLOY / "licences.py"), str(sbom)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("entries", "permitted"),
    [
        pytest.param([{"license": {"id": "MIT"}}], True, id="by its identifier"),
        pytest.param([{"license": {"name": "Apache Software License"}}], True, id="by another name"),
        pytest.param([{"expression": "MIT OR GPL-3.0-only"}], True, id="one of two"),
        pytest.param([{"expression": "MIT AND GPL-3.0-only"}], False, id="both of two"),
        pytest.param([{"license": {"id": "AGPL-3.0-only"}}], False, id="not permitted"),
        pytest.param([], False, id="none"),
    ],
)
def test_a_part_without_a_permitted_licence_fails(
    tmp_path: Path, entries: list[dict[str, Any]], permitted: bool
) -> None:
    done = licences(tmp_path, {"licenses": entries})
    assert (done.returncode == 0) is permitted, done.stderr
    assert done.stdout.startswith("a ")


def test_an_empty_list_of_parts_fails(tmp_path: Path) -> None:
    assert licences(tmp_path).returncode == 1
