"""Three real nats-servers as one cluster."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import nats

from tests.support.servers import NatsServer, free_port
from tests.support.sidecar import eventually

READY_WITHIN = 30.0
"""Seconds for the election of the first leader."""


class Cluster:
    """`async with Cluster(directory) as cluster:` has a leader inside; its nodes are `cluster.nodes`."""

    def __init__(self, directory: Path, *, config: str = "") -> None:
        routes = [free_port() for _ in range(3)]
        listed = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes)
        # Not advertised: clients must not go around the proxies of a test.
        common = f'name: "c", routes: [{listed}], no_advertise: true'
        self.nodes = [
            NatsServer(
                directory / f"node-{i}",
                port=free_port(),
                config=f'cluster {{ listen: "127.0.0.1:{port}", {common} }}\n{config}',
            )
            for i, port in enumerate(routes)
        ]
        self._stack = AsyncExitStack()

    @property
    def ports(self) -> list[int]:
        return [node.port or 0 for node in self.nodes]

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(self._stack.enter_async_context(node) for node in self.nodes))
            await self.ready()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def ready(self) -> None:
        """Wait until JetStream answers and all nodes are in it."""

        async def answers() -> bool:
            nc = await nats.connect([node.url for node in self.nodes], connect_timeout=1, error_cb=_ignore)
            try:
                js = nc.jetstream(timeout=1)
                await js.add_stream(name="READY", subjects=["ready"], num_replicas=3)
                info: Any = await js.stream_info("READY")
                good = info.cluster.leader and all(peer.current for peer in info.cluster.replicas)
                await js.delete_stream("READY")
                return bool(good)
            except Exception:
                return False
            finally:
                await nc.close()

        await eventually(answers, "the cluster to be ready", READY_WITHIN)

    async def restart(self, node: NatsServer) -> None:
        """Start a node that was killed."""
        await node.start()


async def _ignore(error: Exception) -> None:
    """A node that is not there yet."""
