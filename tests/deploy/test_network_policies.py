"""Who reaches which port under the network policies of deploy/kustomize."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.rendering import KUSTOMIZE, OURS, Manifest, one, pod_templates, rendered, with_components

MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
DEFAULT = {"kubernetes.io/metadata.name": "default"}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", [])
    assert all(e["operator"] == "In" for e in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(e["key"]) in e["values"] for e in expressions
    )


def admits(
    policy: Manifest, port: int, *, protocol: str = "TCP", namespace: dict[str, str], pod: dict[str, str]
) -> bool:
    """Whether a pod with these labels, in a namespace with these (the policy's own where it is `DEFAULT`), reaches the
    port of a pod that the policy selects: the rules of Kubernetes, as far as ours use them."""

    def from_here(peer: dict[str, Any]) -> bool:
        spaces = peer.get("namespaceSelector")
        here = namespace == DEFAULT if spaces is None else matches(spaces, namespace)
        return here and matches(peer.get("podSelector", {}), pod)

    def to_here(entry: dict[str, Any]) -> bool:
        return entry["protocol"] == protocol and entry["port"] <= port <= entry.get("endPort", entry["port"])

    assert policy["spec"]["policyTypes"] == ["Ingress"], "what the router reaches is its own affair"
    return any(
        ("from" not in rule or any(from_here(peer) for peer in rule["from"]))
        and any(to_here(entry) for entry in rule["ports"])
        for rule in policy["spec"]["ingress"]
    )


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    manifests = with_components(tmp_path_factory.mktemp("overlay"), "sidecar", "network-policy")
    policy = one(manifests, "NetworkPolicy", OURS)
    labels = {name: template["metadata"]["labels"] for name, template in pod_templates(manifests).items()}
    assert [name for name in labels if matches(policy["spec"]["podSelector"], labels[name])] == ["router"]
    return policy


@pytest.mark.parametrize(
    ("port", "protocol", "namespace", "reached"),
    [
        pytest.param(7778, "TCP", MONITORING, True, id="Prometheus scrapes the sidecar"),
        pytest.param(7778, "TCP", DEFAULT, False, id="nobody else reads its status"),
        pytest.param(8080, "TCP", DEFAULT, True, id="the router's port stays open"),
        pytest.param(7777, "TCP", DEFAULT, True, id="so does the one below"),
        pytest.param(7779, "TCP", DEFAULT, True, id="and the one above"),
        pytest.param(1, "TCP", DEFAULT, True, id="the first"),
        pytest.param(65535, "TCP", DEFAULT, True, id="and the last"),
        pytest.param(7778, "UDP", DEFAULT, True, id="we have no port for datagrams"),
        pytest.param(7778, "SCTP", DEFAULT, True, id="nor for SCTP, which the router may use"),
        pytest.param(8080, "TCP", MONITORING, True, id="Prometheus scrapes the router"),
    ],
)
def test_the_port_of_the_sidecar_is_for_prometheus_alone(
    policy: Manifest, port: int, protocol: str, namespace: dict[str, str], reached: bool
) -> None:
    assert admits(policy, port, protocol=protocol, namespace=namespace, pod={"app": "any"}) is reached


@pytest.mark.parametrize(
    ("namespace", "app", "reached"),
    [(DEFAULT, "router", True), (DEFAULT, "gateway", True), (DEFAULT, "other", False), (MONITORING, "router", False)],
)
def test_in_the_example_nats_is_for_the_router_and_the_gateway(
    namespace: dict[str, str], app: str, reached: bool
) -> None:
    nats = one(rendered(KUSTOMIZE / "example"), "NetworkPolicy", "nats")
    assert admits(nats, 4222, namespace=namespace, pod={"app": app}) is reached
