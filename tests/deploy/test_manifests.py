"""The manifests render, are valid for Kubernetes, and give the pod what a sidecar owes it."""

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from nats_backpressure.cli import main
from tests.support.parts import need_command

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
BASE = DEPLOY / "kustomize" / "base"
OLDEST, NEWEST = "1.29", "1.32"  # native sidecars are on by default from 1.29

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    kubectl = need_command("kubectl")
    done = subprocess.run([kubectl, "kustomize", BASE], check=True, capture_output=True, text=True, timeout=60)
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def pod(manifests: list[Manifest]) -> Manifest:
    return next(m for m in manifests if m["kind"] == "Deployment")["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def ours(pod: Manifest) -> Manifest:
    return next(c for c in pod["initContainers"] if c["name"] == "nats-backpressure")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_fits_the_schema_with_no_unknown_field(manifests: list[Manifest], version: str) -> None:
    assert {m["kind"] for m in manifests} == {"ConfigMap", "Deployment"}
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_validation_would_notice_a_misspelt_field(manifests: list[Manifest]) -> None:
    broken = {**manifests[0], "dataa": {}}
    with pytest.raises(kubernetes_validate.utils.ValidationError):
        kubernetes_validate.validate(broken, NEWEST, strict=True)


def test_it_is_a_native_sidecar_that_starts_before_the_router(pod: Manifest, ours: Manifest) -> None:
    assert ours["restartPolicy"] == "Always"
    assert [c["name"] for c in pod["containers"]] == ["router"]


@pytest.mark.parametrize(
    ("probe", "path"), [("startupProbe", "/healthz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")]
)
def test_it_is_probed_where_it_answers(ours: Manifest, probe: str, path: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in ours["ports"]}
    get = ours[probe]["httpGet"]
    assert (get["path"], ports[get["port"]]) == (path, 7778)


def test_no_container_may_do_more_than_it_needs(pod: Manifest) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    for container in [*pod["initContainers"], *pod["containers"]]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["resources"]["limits"]["memory"]


def test_an_update_starts_a_new_replica_before_it_stops_an_old_one(manifests: list[Manifest]) -> None:
    strategy = next(m for m in manifests if m["kind"] == "Deployment")["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


def test_it_starts_without_the_secret_of_its_credentials(pod: Manifest) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["backpressure-nats"]["secret"]["optional"] is True


def test_its_configuration_is_the_one_of_the_config_map_and_passes_check(
    manifests: list[Manifest], pod: Manifest, ours: Manifest, tmp_path: Path
) -> None:
    config = next(m for m in manifests if m["kind"] == "ConfigMap")
    path = Path(ours["args"][ours["args"].index("--config") + 1])
    mount = next(m for m in ours["volumeMounts"] if m["mountPath"] == str(path.parent))
    volume = next(v for v in pod["volumes"] if v["name"] == mount["name"])
    assert volume["configMap"]["name"] == config["metadata"]["name"]

    file = tmp_path / path.name
    file.write_text(config["data"][path.name])
    result = CliRunner().invoke(main, ["check", str(file)])
    assert result.exit_code == 0, result.output


def test_the_image_runs_as_nobody_in_particular_with_the_user_the_pod_names(pod: Manifest) -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    user = pod["securityContext"]["runAsUser"]
    assert f"USER {user}:{pod['securityContext']['runAsGroup']}" in lines
    assert user != 0
