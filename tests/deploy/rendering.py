"""Renders the manifests of deploy/kustomize with kubectl, and finds things in what comes out."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.support.parts import need_command

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUSTOMIZE = DEPLOY / "kustomize"
OURS = "nats-backpressure"

Manifest = dict[str, Any]

ROUTER = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: router
  labels: {nats-backpressure: sidecar}
spec:
  replicas: 3
  selector: {matchLabels: {app: router}}
  template:
    metadata:
      labels: {app: router}
      annotations: {prometheus.io/port: "9100"}
    spec:
      serviceAccountName: router
      securityContext: {runAsUser: 1000, fsGroup: 2000}
      initContainers:
        - {name: migrate, image: "router:1"}
      containers:
        - name: router
          image: router:1
          ports: [{name: http, containerPort: 8080}]
          volumeMounts: [{name: cache, mountPath: /cache}]
      volumes:
        - {name: cache, emptyDir: {}}
"""
"""A router as another team may have it."""
OTHER = ROUTER.replace("name: router\n  labels: {nats-backpressure: sidecar}", "name: other")
"""A Deployment that did not ask for the sidecar."""


@cache
def rendered(directory: Path) -> list[Manifest]:
    command = [need_command("kubectl"), "kustomize", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def with_components(directory: Path, *components: str) -> list[Manifest]:
    """The base, two Deployments of somebody else, and these components, as an overlay of their own."""
    directory.mkdir(exist_ok=True)
    (directory / "deployments.yaml").write_text(f"{ROUTER}---\n{OTHER}")
    beside = Path(os.path.relpath(KUSTOMIZE, directory))
    overlay = {
        "resources": ["deployments.yaml", str(beside / "base")],
        "components": [str(beside / "components" / name) for name in components],
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return rendered(directory)


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    matches = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    assert len(matches) == 1, f"{len(matches)} of {kind}/{name}"
    return matches[0]


def pod_templates(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The pod template of each workload, by its name."""
    workloads = [m for m in manifests if m["kind"] in ("Deployment", "StatefulSet")]
    return {m["metadata"]["name"]: m["spec"]["template"] for m in workloads}


def containers(template: Manifest) -> list[Manifest]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def sidecar_of(template: Manifest) -> Manifest:
    (container,) = [c for c in containers(template) if c["name"] == OURS]
    return container
