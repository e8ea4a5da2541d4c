"""The example of deploy/kustomize is whole: what one part names, another one is; and it keeps the strictest rules."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from nats_backpressure import __version__
from tests.deploy.rendering import KUSTOMIZE, OURS, Manifest, containers, one, pod_templates, rendered


@pytest.fixture(scope="module", params=["example", "example-tls"])
def example(request: pytest.FixtureRequest) -> list[Manifest]:
    return rendered(KUSTOMIZE / str(request.param))


@pytest.fixture(scope="module")
def templates(example: list[Manifest]) -> dict[str, Manifest]:
    return pod_templates(example)


def test_only_the_router_has_the_sidecar(templates: dict[str, Manifest]) -> None:
    names = {name: [c["name"] for c in containers(template)] for name, template in templates.items()}
    assert names == {"router": [OURS, "router"], "gateway": ["gateway"], "nats": ["nats"]}


@pytest.mark.parametrize("name", ["router", "gateway", "nats"])
def test_every_container_keeps_the_restricted_standard(templates: dict[str, Manifest], name: str) -> None:
    """As the label of the namespace demands. What the container does not set is that of its pod."""
    pod = templates[name]["spec"]
    for container in containers(templates[name]):
        context: dict[str, Any] = pod["securityContext"] | container["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] != 0
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"]


def test_every_image_has_a_version(templates: dict[str, Manifest]) -> None:
    images = {c["image"] for template in templates.values() for c in containers(template)}
    assert all(":" in image and not image.endswith(":latest") for image in images)
    assert {image for image in images if image.startswith(OURS)} == {f"{OURS}:{__version__}"}


def test_every_service_has_pods_and_a_port_of_theirs(example: list[Manifest], templates: dict[str, Manifest]) -> None:
    services = {m["metadata"]["name"]: m["spec"] for m in example if m["kind"] == "Service"}
    assert services.keys() == {"nats", "gateway"}
    for name, service in services.items():
        assert service["selector"].items() <= templates[name]["metadata"]["labels"].items()
        ports = {port["name"] for c in containers(templates[name]) for port in c.get("ports", [])}
        assert {port["targetPort"] for port in service["ports"]} <= ports


def test_everybody_connects_to_the_service_of_nats(example: list[Manifest], templates: dict[str, Manifest]) -> None:
    config = yaml.safe_load(one(example, "ConfigMap", OURS)["data"]["config.yaml"])
    urls = set(config["nats"]["servers"])
    variables = [v for t in templates.values() for c in containers(t) for v in c.get("env", [])]
    urls |= {v["value"] for v in variables if v["name"] == "NATS_URL"}
    service = one(example, "Service", "nats")
    scheme = "tls" if "tls" in config["nats"] else "nats"
    assert urls == {f"{scheme}://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"}


def test_what_a_pod_mounts_exists(example: list[Manifest], templates: dict[str, Manifest]) -> None:
    for template in templates.values():
        for volume in template["spec"].get("volumes", []):
            if "configMap" in volume:
                one(example, "ConfigMap", volume["configMap"]["name"])
            secret = volume.get("secret", {"optional": True})
            assert secret.get("optional") or secret["secretName"] == "nats-tls", "its kustomization says how it is made"
        if account := template["spec"].get("serviceAccountName"):
            one(example, "ServiceAccount", account)


@pytest.mark.parametrize("name", ["router", "gateway"])
def test_a_new_pod_serves_before_an_old_one_ends_and_a_drain_takes_one_at_a_time(
    example: list[Manifest], templates: dict[str, Manifest], name: str
) -> None:
    deployment, budget = one(example, "Deployment", name), one(example, "PodDisruptionBudget", name)
    assert deployment["spec"]["strategy"] == {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    assert budget["spec"]["maxUnavailable"] == 1 < deployment["spec"]["replicas"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= templates[name]["metadata"]["labels"].items()


def test_everything_is_in_the_namespace_of_the_example(example: list[Manifest]) -> None:
    namespaces = {m["metadata"].get("namespace") for m in example if m["kind"] != "Namespace"}
    assert namespaces == {one(example, "Namespace", "backpressure-example")["metadata"]["name"]}
