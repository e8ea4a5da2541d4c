"""One or three NATS containers and a sidecar container beside them, as in a pod."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
from testcontainers.core.container import DockerContainer
from testcontainers.core.network import Network

from tests.support.config_map import FILE, put_config_map

CONFIG: dict[str, Any] = {"observe": {"min_interval_ms": 100, "max_interval_ms": 1000}}
MOUNTED = "/etc/nats-backpressure/config"


class Pair:
    """NATS and the sidecar. With three servers, `nats` is the first of a cluster."""

    def __init__(self, servers: Sequence[DockerContainer], sidecar: DockerContainer, directory: Path) -> None:
        self.servers, self.nats, self.sidecar = servers, servers[0], sidecar
        self._directory, self._revision = directory, 0

    @property
    def nats_urls(self) -> list[str]:
        """Of those that run."""
        running = [server for server in self.servers if _status(server) == "running"]
        return [f"nats://{_address(server, 4222)}" for server in running]

    def configure(self, settings: dict[str, Any]) -> None:
        """Change the mounted settings, as Kubernetes changes those of a ConfigMap."""
        self._revision += 1
        put_config_map(self._directory, self._revision, json.dumps(CONFIG | settings))

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

    async def until_blind(self, seconds: float) -> None:
        """Wait until it has read nothing for so long."""
        async with asyncio.timeout(30):
            while (await self.until_ready())["last_sweep_age_ms"] < 1000 * seconds:
                await asyncio.sleep(0.1)

    def logs(self) -> str:
        return str(self.sidecar.get_wrapped_container().logs(tail=60).decode(errors="replace"))

    def stop_sidecar(self, limit: int) -> int:
        """SIGTERM, SIGKILL after the limit, and the exit code: 137 is the latter."""
        container = self.sidecar.get_wrapped_container()
        container.stop(timeout=limit)
        return int(container.wait(timeout=10)["StatusCode"])


def kill(container: DockerContainer) -> None:
    container.get_wrapped_container().kill()


def start(container: DockerContainer) -> None:
    container.get_wrapped_container().start()


def pause(container: DockerContainer) -> None:
    """Its connections stay open, and nothing answers."""
    container.get_wrapped_container().pause()


def resume(container: DockerContainer) -> None:
    container.get_wrapped_container().unpause()


def _status(container: DockerContainer) -> str:
    wrapped = container.get_wrapped_container()
    wrapped.reload()
    return str(wrapped.status)


def _address(container: DockerContainer, port: int) -> str:
    """Looked up again each time: the port on the host changes when a container is started again."""
    status, wrapped = _status(container), container.get_wrapped_container()
    assert status == "running", f"the container is {status}: {wrapped.logs(tail=60).decode()}"
    return f"{container.get_container_host_ip()}:{wrapped.ports[f'{port}/tcp'][0]['HostPort']}"


def _servers(image: str, network: Network, count: int) -> list[DockerContainer]:
    names = ["nats", "nats-2", "nats-3"][:count]
    cluster = ["--cluster_name", "c", "--cluster", "nats://0.0.0.0:6222"]
    cluster += ["--routes", ",".join(f"nats://{name}:6222" for name in names)]
    return [
        DockerContainer(
            image,
            command=["-js", "-sd", "/data", "--name", name, *(cluster if count > 1 else [])],  # type: ignore[arg-type]
            ports=[4222],
            network=network,
            network_aliases=[name],
        )
        for name in names
    ]


@contextmanager
def running_pair(
    nats_image: str, sidecar_image: str, directory: Path, *, servers: int = 1, user: str | None = None
) -> Iterator[Pair]:
    """`user` is the uid of the sidecar, or None for that of the image. Its directory is mounted like a ConfigMap."""
    with Network() as network, ExitStack() as stack:
        running = _servers(nats_image, network, servers)
        urls = [f"nats://{name}:4222" for name in ("nats", "nats-2", "nats-3")[:servers]]
        # As in deploy/kustomize: nothing may be written, nothing may be gained.
        sidecar = DockerContainer(
            sidecar_image,
            command=["run", "--config", f"{MOUNTED}/{FILE}"],  # type: ignore[arg-type]
            env={"NATS_URL": ",".join(urls)},
            ports=[7778],
            volumes=[(str(directory), MOUNTED, "ro")],
            network=network,
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            **({"user": user} if user else {}),
        )
        pair = Pair(running, sidecar, directory)
        pair.configure({"publish": {"replicas": servers}})
        for container in (*running, sidecar):
            stack.enter_context(container)
        yield pair


def any_user() -> str:
    """As some platforms start a container: a uid that nobody knows, in the group of root."""
    return f"{random.randint(100_000, 1_000_000)}:0"
