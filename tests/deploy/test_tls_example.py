"""The TLS overlay on a real nats-server: with its arguments and settings the sidecar and the demo's parts connect, and
nobody does without TLS or the CA."""

from __future__ import annotations

import asyncio
import os
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest
import trustme
import yaml

from tests.deploy.rendering import KUSTOMIZE, OURS, Manifest, containers, one, pod_templates, rendered, sidecar_of
from tests.support.servers import free_port, server_binary
from tests.support.sidecar import STARTS_WITHIN, eventually

TLS, CA = "/etc/nats-tls", "/etc/nats-ca"


@pytest.fixture(scope="module")
def overlay() -> list[Manifest]:
    return rendered(KUSTOMIZE / "example-tls")


@pytest.fixture(scope="module")
def templates(overlay: list[Manifest]) -> dict[str, Manifest]:
    return pod_templates(overlay)


def mounted(template: Manifest, container: Manifest) -> dict[str, Any]:
    """The Secret behind each directory of a container."""
    secrets = {volume["name"]: volume.get("secret") for volume in template["spec"].get("volumes", [])}
    return {mount["mountPath"]: secrets.get(mount["name"]) for mount in container.get("volumeMounts", [])}


def test_only_nats_gets_the_key(templates: dict[str, Manifest]) -> None:
    for name, template in templates.items():
        for container in containers(template):
            secrets = mounted(template, container)
            if name == "nats":
                assert secrets[TLS] == {"secretName": "nats-tls"}
            else:
                assert secrets[CA] == {"secretName": "nats-tls", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
                assert TLS not in secrets


def test_the_sidecar_keeps_all_that_its_component_gave_it(templates: dict[str, Manifest]) -> None:
    plain = pod_templates(rendered(KUSTOMIZE / "example"))["router"]
    mounts = {mount["mountPath"] for mount in sidecar_of(templates["router"])["volumeMounts"]}
    assert mounts == {mount["mountPath"] for mount in sidecar_of(plain)["volumeMounts"]} | {CA}
    assert templates["router"]["spec"]["initContainers"][0]["name"] == OURS


async def test_everybody_connects_as_rendered(
    overlay: list[Manifest], templates: dict[str, Manifest], tmp_path: Path
) -> None:
    authority, port = trustme.CA(), free_port()
    certificate = authority.issue_cert("localhost")  # stands for the host `nats`
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")

    def here(text: str) -> str:
        text = text.replace(TLS, str(tmp_path)).replace(CA, str(tmp_path)).replace("/data", str(tmp_path / "js"))
        return text.replace("nats:4222", f"localhost:{port}")

    (server,) = containers(templates["nats"])
    arguments = [here(each) for each in server["args"] if not each.startswith("--http_port")]
    process = await asyncio.create_subprocess_exec(server_binary(), *arguments, "-a", "127.0.0.1", "-p", str(port))
    try:
        config = tmp_path / "config.yaml"
        config.write_text(here(one(overlay, "ConfigMap", OURS)["data"]["config.yaml"]))
        await up(port, tmp_path / "ca.crt")
        assert await doctor(config) == "ok"
        without = yaml.safe_load(config.read_text())
        del without["nats"]["tls"]
        config.write_text(yaml.safe_dump(without))
        assert await doctor(config) == "ERROR", "whose certificate it is cannot be seen without the CA"

        (gateway,) = containers(templates["gateway"])
        env = {variable["name"]: here(variable["value"]) for variable in gateway["env"]}
        program = "import asyncio, nats, os; asyncio.run(nats.connect(os.environ['NATS_URL'], allow_reconnect=False))"
        for variables, works in ((env, True), ({"NATS_URL": env["NATS_URL"]}, False)):
            ran = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", program],
                env={**os.environ, **variables},
                capture_output=True,
                timeout=60,
            )
            assert (ran.returncode == 0) == works, ran.stderr
    finally:
        process.kill()
        await process.wait()


async def up(port: int, ca: Path) -> None:
    context = ssl.create_default_context(cafile=str(ca))

    async def look() -> bool:
        with suppress(Exception):
            client = await nats.connect(
                f"tls://localhost:{port}", tls=context, allow_reconnect=False, connect_timeout=1
            )
            await client.close()
            return True
        return False

    await eventually(look, "the server to accept TLS", STARTS_WITHIN)


async def doctor(config: Path) -> str:
    """The level of its check of the connection."""
    command = [sys.executable, "-m", "nats_backpressure", "doctor", "--config", str(config)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
    ran = await asyncio.to_thread(subprocess.run, command, env=plain, capture_output=True, text=True, timeout=60)
    (line,) = [line for line in ran.stdout.splitlines() if line[9:].startswith("connection")]
    return line.split()[0]
