"""A NATS container and a sidecar container beside it, as in a pod."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

CONFIG = """\
observe: {min_interval_ms: 100, max_interval_ms: 1000}
"""


@dataclass(frozen=True)
class Pair:
    nats: DockerContainer
    sidecar: DockerContainer

    @property
    def nats_url(self) -> str:
        return f"nats://{_address(self.nats, 4222)}"

    async def probe(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://{_address(self.sidecar, 7778)}", timeout=2) as client:
            return await client.get(path)

    async def until_ready(self, within: float = 30, **facts: Any) -> dict[str, Any]:
        """The body of /readyz once it says 200 and all these facts."""
        seen: object = None
        try:
            async with asyncio.timeout(within):
                while True:
                    try:
                        answer = await self.probe("/readyz")
                        seen = answer.status_code, answer.text
                        if answer.status_code == 200 and facts.items() <= answer.json().items():
                            return dict(answer.json())
                    except (httpx.TransportError, ConnectionError) as error:
                        seen = error
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"/readyz never reported {facts}, last: {seen}") from None

    def logs(self) -> str:
        return str(self.sidecar.get_wrapped_container().logs(tail=60).decode(errors="replace"))

    def kill_sidecar(self) -> None:
        self.sidecar.get_wrapped_container().kill()

    def start_sidecar(self) -> None:
        self.sidecar.get_wrapped_container().start()

    def stop_sidecar(self, limit: int) -> int:
        """SIGTERM, SIGKILL after the limit, and the exit code: 137 is the latter."""
        container = self.sidecar.get_wrapped_container()
        container.stop(timeout=limit)
        return int(container.wait(timeout=10)["StatusCode"])


def _address(container: DockerContainer, port: int) -> str:
    """Looked up again each time: the port on the host changes when a container is started again."""
    wrapped = container.get_wrapped_container()
    wrapped.reload()
    assert wrapped.status == "running", f"the container is {wrapped.status}: {wrapped.logs(tail=60).decode()}"
    return f"{container.get_container_host_ip()}:{wrapped.ports[f'{port}/tcp'][0]['HostPort']}"


@contextmanager
def running_pair(nats_image: str, sidecar_image: str, directory: Path) -> Iterator[Pair]:
    config = directory / "config.yaml"
    config.write_text(CONFIG)
    config.chmod(0o644)
    with Network() as network:
        nats = DockerContainer(
            nats_image, command=["-js", "-sd", "/data"], ports=[4222], network=network, network_aliases=["nats"]
        )
        # As in deploy/kustomize/base: nothing may be written, nothing may be gained.
        sidecar = DockerContainer(
            sidecar_image,
            command=["run", "--config", "/etc/nats-backpressure/config.yaml"],
            env={"NATS_URL": "nats://nats:4222"},
            ports=[7778],
            volumes=[(str(config), "/etc/nats-backpressure/config.yaml", "ro")],
            network=network,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        )
        with nats, sidecar:
            yield Pair(nats, sidecar)
