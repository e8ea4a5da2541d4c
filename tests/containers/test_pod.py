"""The pod of deploy/kustomize runs without a cluster, by `podman play kube`: its volumes, its user and its limits."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.containers.conftest import NATS_IMAGE, SIDECAR_IMAGE
from tests.deploy.rendering import OURS, one, sidecar_of, with_components
from tests.support.parts import need_command
from tests.support.servers import free_port
from tests.support.sidecar import eventually

pytestmark = [pytest.mark.containers, pytest.mark.timeout(500)]

POD = "nats-backpressure-test"
CONTAINER = f"{POD}-{OURS}"
LIMITS = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
"""Podman otherwise asks for more than some machines allow."""
NOT_IN_PODMAN = ("startupProbe", "livenessProbe", "readinessProbe", "ports")
"""Podman runs probes by curl in the container, which the image has not; the network is that of the machine."""
SEEN = """
import json, os
print(json.dumps({"uid": os.getuid(), "token": os.listdir("/var/run/secrets/kubernetes.io/serviceaccount")}))
"""


def pod_of(directory: Path, nats_port: int, http_port: int) -> str:
    """The sidecar's part of a rendered pod, as an ordinary container (podman knows no native sidecars), and NATS. An
    optional Secret that does not exist is an error to podman, so it is left out."""
    manifests = with_components(directory, "sidecar-before-1.29")
    config = one(manifests, "ConfigMap", OURS)
    settings = {"nats": {"servers": [f"nats://127.0.0.1:{nats_port}"]}, "http": {"port": http_port}}
    config["data"]["config.yaml"] = json.dumps(settings)
    template = one(manifests, "Deployment", "router")["spec"]["template"]
    sidecar = {key: value for key, value in sidecar_of(template).items() if key not in NOT_IN_PODMAN}
    sidecar["image"] = f"localhost/{SIDECAR_IMAGE}"
    sidecar["volumeMounts"] = [m for m in sidecar["volumeMounts"] if m["name"] != "backpressure-nats"]
    names = {mount["name"] for mount in sidecar["volumeMounts"]}
    arguments = ["-js", "-sd", "/data", "-a", "127.0.0.1", "-p", str(nats_port)]
    nats = {"name": "nats", "image": f"localhost/{NATS_IMAGE}", "args": arguments}
    for container in (nats, sidecar):
        container["imagePullPolicy"] = "Never"
    volumes = [volume for volume in template["spec"]["volumes"] if volume["name"] in names]
    spec = {"containers": [nats, sidecar], "volumes": volumes}
    return yaml.safe_dump_all([config, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD}, "spec": spec}])


class Podman:
    def __init__(self, directory: Path) -> None:
        limits = directory / "containers.conf"
        limits.write_text(LIMITS)
        self._podman = need_command("podman")
        self._environment = {**os.environ, "CONTAINERS_CONF": str(limits)}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [self._podman, *arguments], capture_output=True, text=True, timeout=120, env=self._environment
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout

    def inspect(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self("inspect", CONTAINER))[0]
        return result


@pytest.fixture
def podman(docker: str, nats_image: str, sidecar_image: str, tmp_path: Path) -> Iterator[Podman]:
    """With the images that Docker built."""
    podman = Podman(tmp_path)
    images = tmp_path / "images.tar"
    subprocess.run([docker, "save", "--output", str(images), nats_image, sidecar_image], check=True, timeout=120)
    podman("load", "--quiet", "--input", str(images))
    images.unlink()
    try:
        yield podman
    finally:
        print(podman("logs", CONTAINER, check=False))
        podman("pod", "rm", "--force", "--time", "1", POD, check=False)
        podman("volume", "rm", "--force", OURS, "backpressure-no-token", check=False)
        podman("rmi", f"localhost/{nats_image}", f"localhost/{sidecar_image}", check=False)


async def test_the_pod_runs_with_what_the_manifest_gives_it(podman: Podman, tmp_path: Path) -> None:
    nats_port, http_port = free_port(), free_port()
    pod = tmp_path / "pod.yaml"
    pod.write_text(pod_of(tmp_path / "overlay", nats_port, http_port))
    podman("play", "kube", "--network", "host", str(pod))

    async def observing() -> bool:
        """On the port that the ConfigMap names: it is mounted, and read."""
        try:
            async with httpx.AsyncClient(timeout=2) as client:
                return bool((await client.get(f"http://127.0.0.1:{http_port}/readyz")).json()["observing"])
        except httpx.TransportError:
            await asyncio.sleep(0.1)
            return False

    await eventually(observing, "the sidecar to observe", seconds=60)
    facts = podman.inspect()
    assert facts["HostConfig"]["ReadonlyRootfs"] is True
    assert facts["EffectiveCaps"] in (None, [])
    assert json.loads(podman("exec", CONTAINER, "python3", "-c", SEEN)) == {"uid": 65532, "token": []}
    podman("stop", "--time", "5", CONTAINER)
    assert podman.inspect()["State"]["ExitCode"] == 0
