"""The manifests render, are valid for Kubernetes, and give a pod the sidecar and nothing else."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from nats_backpressure import __version__
from nats_backpressure.cli import main
from tests.deploy.rendering import (
    DEPLOY,
    KUSTOMIZE,
    OTHER,
    OURS,
    ROUTER,
    Manifest,
    one,
    rendered,
    sidecar_of,
    with_components,
)

NATIVE, BEFORE = "sidecar", "sidecar-before-1.29"
EXTRAS = ("pod-monitor", "network-policy")
VERSIONS = {NATIVE: ("1.29", "1.33", "1.37"), BEFORE: ("1.25", "1.27", "1.28")}
"""Native sidecars are on by default from 1.29."""


@pytest.fixture(scope="module", params=VERSIONS)
def component(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def manifests(component: str, tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return with_components(tmp_path_factory.mktemp("overlay"), component, *EXTRAS)


@pytest.fixture(scope="module", params=["example", "example-tls"])
def example(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(KUSTOMIZE / str(request.param))


@pytest.fixture(scope="module")
def template(manifests: list[Manifest]) -> Manifest:
    template: Manifest = one(manifests, "Deployment", "router")["spec"]["template"]
    return template


@pytest.fixture(scope="module")
def sidecar(template: Manifest) -> Manifest:
    return sidecar_of(template)


def validate(manifests: list[Manifest], version: str) -> None:
    """Against the schema of that Kubernetes version, with no unknown field. The PodMonitor is not Kubernetes' own."""
    for manifest in manifests:
        if manifest["kind"] != "PodMonitor":
            kubernetes_validate.validate(manifest, version, strict=True)


def test_every_manifest_fits_the_schemas_with_no_unknown_field(manifests: list[Manifest], component: str) -> None:
    for version in VERSIONS[component]:
        validate(manifests, version)


@pytest.mark.parametrize("version", VERSIONS[NATIVE])
def test_the_example_fits_the_schemas_with_no_unknown_field(example: list[Manifest], version: str) -> None:
    validate(example, version)


def test_the_validation_would_notice_a_misspelt_field(example: list[Manifest]) -> None:
    broken = copy.deepcopy(one(example, "Deployment", "router"))
    broken["spec"]["template"]["spec"]["initContainers"][0]["restartPolcy"] = "Always"
    with pytest.raises(kubernetes_validate.utils.ValidationError):
        validate([broken], VERSIONS[NATIVE][0])


def test_the_rest_of_the_pod_stays_as_it_was(manifests: list[Manifest], component: str) -> None:
    router = copy.deepcopy(one(manifests, "Deployment", "router"))
    template = router["spec"]["template"]
    assert template["metadata"]["labels"].pop(OURS) == "sidecar"
    spec = template["spec"]
    for key, prefix in (("containers", OURS), ("initContainers", OURS), ("volumes", "backpressure-")):
        spec[key] = [entry for entry in spec[key] if not entry["name"].startswith(prefix)]
    assert router == yaml.safe_load(ROUTER)
    assert one(manifests, "Deployment", "other") == yaml.safe_load(OTHER)


def test_what_the_readme_says_is_not_touched_stays_as_it_was(tmp_path: Path) -> None:
    """And a copy of the component for StatefulSets, made as the page says, adds the sidecar to one."""
    stateful = yaml.safe_load(ROUTER) | {"kind": "StatefulSet"}
    labelled = yaml.safe_load(OTHER)
    labelled["spec"]["template"]["metadata"]["labels"][OURS] = "sidecar"
    copied = tmp_path / "component"
    shutil.copytree(KUSTOMIZE / "components" / NATIVE, copied)
    (tmp_path / "workloads.yaml").write_text(yaml.safe_dump_all([stateful, labelled]))
    overlay = {"resources": ["workloads.yaml"], "components": ["component"]}
    for kind in ("Deployment", "StatefulSet"):
        for file in copied.iterdir():
            file.write_text(file.read_text().replace("kind: Deployment", f"kind: {kind}"))
        where = tmp_path / kind
        shutil.copytree(tmp_path, where, ignore=shutil.ignore_patterns("Deployment", "StatefulSet"))
        (where / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        manifests = rendered(where)
        assert one(manifests, "Deployment", "other") == labelled
        assert (one(manifests, "StatefulSet", "router") == stateful) == (kind == "Deployment")
    assert sidecar_of(one(manifests, "StatefulSet", "router")["spec"]["template"])


def test_it_starts_before_everything_else_where_kubernetes_can(template: Manifest, component: str) -> None:
    spec = template["spec"]
    if component == NATIVE:
        assert spec["initContainers"][0]["name"] == OURS
        assert spec["initContainers"][0]["restartPolicy"] == "Always"
    else:
        assert [c["name"] for c in spec["initContainers"]] == ["migrate"]
        assert "restartPolicy" not in sidecar_of(template)


ASSERTIONS: dict[str, Callable[[Manifest], Any]] = {
    "its image is of this version": lambda c: c["image"] == f"nats-backpressure:{__version__}",
    "it gains no privileges": lambda c: c["securityContext"]["allowPrivilegeEscalation"] is False,
    "it writes nothing": lambda c: c["securityContext"]["readOnlyRootFilesystem"] is True,
    "it is not root": lambda c: c["securityContext"]["runAsNonRoot"] is True and c["securityContext"]["runAsUser"],
    "it has no capabilities": lambda c: c["securityContext"]["capabilities"] == {"drop": ["ALL"]},
    "its system calls are filtered": lambda c: c["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"},
    "its memory is limited": lambda c: c["resources"]["limits"].keys() == {"memory"},
    "its CPU is not limited, it would answer late": lambda c: "cpu" in c["resources"]["requests"],
    "it has no secret in its arguments or variables": lambda c: not c.get("env") and not c.get("envFrom"),
    "it sees changes of its config": lambda c: all("subPath" not in mount for mount in c["volumeMounts"]),
    "it can write into no volume": lambda c: all(mount["readOnly"] for mount in c["volumeMounts"]),
    "it gets no token": lambda c: (
        "/var/run/secrets/kubernetes.io/serviceaccount" in {mount["mountPath"] for mount in c["volumeMounts"]}
    ),
    "its port has a name": lambda c: c["ports"] == [{"name": "backpressure", "containerPort": 7778}],
    "it is started when it answers": lambda c: _probe(c["startupProbe"]) == "/healthz",
    "it is restarted when it hangs": lambda c: _probe(c["livenessProbe"]) == "/healthz",
    "it is ready when it serves": lambda c: _probe(c["readinessProbe"]) == "/readyz",
    "a busy node does not end it": lambda c: (
        c["livenessProbe"]["timeoutSeconds"] * c["livenessProbe"]["periodSeconds"] >= 20
    ),
}
"""What holds for the sidecar's container, whichever component adds it."""


@pytest.mark.parametrize("rule", ASSERTIONS)
def test_the_container(sidecar: Manifest, rule: str) -> None:
    assert ASSERTIONS[rule](sidecar), rule


def _probe(probe: Manifest) -> str:
    assert probe["httpGet"]["port"] == "backpressure"
    return str(probe["httpGet"]["path"])


def test_it_asks_for_what_was_measured(sidecar: Manifest) -> None:
    """The request is for 1,000 idle consumers, the limit of memory for 10,000."""
    results = json.loads((DEPLOY.parent / "benchmarks" / "results.json").read_text())
    figures = results["runs"]["standing"]["figures"]
    requests, limits = sidecar["resources"]["requests"], sidecar["resources"]["limits"]
    assert _number(requests["cpu"], "m") / 10 >= figures["1,000 idle consumers in 4 streams: sidecar"]["value"]
    assert _number(requests["memory"], "Mi") >= figures["1,000 idle consumers in 4 streams: memory (rss)"]["value"]
    assert _number(limits["memory"], "Mi") >= figures["10,000 idle consumers in 20 streams: memory (rss)"]["value"]


def _number(quantity: str, unit: str) -> int:
    assert quantity.endswith(unit)
    return int(quantity.removesuffix(unit))


def test_it_starts_without_the_secret_of_its_login(template: Manifest) -> None:
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert volumes["backpressure-nats"]["secret"] == {"secretName": "nats-backpressure-nats", "optional": True}


def test_its_file_is_that_of_the_config_map_whose_change_rolls_no_pod(
    manifests: list[Manifest], template: Manifest, sidecar: Manifest
) -> None:
    path = Path(sidecar["args"][sidecar["args"].index("--config") + 1])
    mount = next(m for m in sidecar["volumeMounts"] if m["mountPath"] == str(path.parent))
    volume = next(v for v in template["spec"]["volumes"] if v["name"] == mount["name"])
    assert volume["configMap"]["name"] == OURS, "no hash of its content"
    assert one(manifests, "ConfigMap", OURS)["data"].keys() == {path.name}


@pytest.mark.parametrize(
    "file", sorted(DEPLOY.rglob("config.yaml")), ids=lambda file: str(file.relative_to(DEPLOY).parent)
)
def test_every_settings_file_passes_check(file: Path) -> None:
    result = CliRunner().invoke(main, ["check", "--without-secrets", str(file)])
    assert result.exit_code == 0, result.output


def test_the_service_account_of_the_base_has_no_token(manifests: list[Manifest]) -> None:
    assert one(manifests, "ServiceAccount", OURS)["automountServiceAccountToken"] is False


def test_the_pod_monitor_finds_the_pods_and_their_port(manifests: list[Manifest], template: Manifest) -> None:
    monitor = one(manifests, "PodMonitor", OURS)
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["spec"].keys() == {"selector", "podMetricsEndpoints"}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint == {"port": "backpressure", "path": "/metrics", "interval": "15s", "scrapeTimeout": "5s"}
