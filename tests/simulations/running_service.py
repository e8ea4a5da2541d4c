"""A whole service on fakes and a fake clock, with faults that a real server cannot produce on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model.samples import ConsumerConfig, StreamLook
from nats_backpressure.policy.snapshot import PolicySnapshot, PolicyValue
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.queries import serialize
from nats_backpressure.runtime.service import Service
from nats_backpressure.runtime.service_builder import ServicePorts, build_service
from tests.fakes.clock import FakeClock
from tests.fakes.observer import FakeJetStream
from tests.fakes.stores import FakeEventPublisher, FakeStateStore

KEY = ConsumerKey("ROUTER", "router")
SUBJECT = "decide"
SETTINGS = Settings(
    instance="here", observe=Observe(min_interval_ms=10, stale_after_seconds=1, unknown_after_seconds=2)
)


class Quiet:
    """Nobody counts."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


class FakePolicies:
    """A policy bucket in memory: what it holds is known at once."""

    def __init__(self) -> None:
        self.entries: dict[str, PolicyValue] = {}
        self._followers: list[Callable[[PolicySnapshot], None]] = []

    async def follow(self, on_change: Callable[[PolicySnapshot], None]) -> None:
        self._followers.append(on_change)
        on_change(PolicySnapshot("b", dict(self.entries)))
        await asyncio.Event().wait()

    def take_looks(self, looks: Sequence[StreamLook]) -> None: ...

    def put(self, key: str, value: bytes, at: float = 0.0) -> None:
        """`at`: Unix seconds at which the server stores it."""
        self.entries[key] = PolicyValue(value, len(self.entries) + 1, at)
        for on_change in self._followers:
            on_change(PolicySnapshot("b", dict(self.entries)))


class World:
    """One JetStream, one bucket and one events stream, outliving every service that runs on them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.js = FakeJetStream(self.clock)
        self.js.add_stream(KEY.stream, (SUBJECT,))
        self.js.add_consumer(KEY, ConsumerConfig())
        self.store, self.publisher, self.policies = FakeStateStore(), FakeEventPublisher(), FakePolicies()
        self.lives = 0

    async def nothing(self) -> None:
        """The resources are always there."""

    @asynccontextmanager
    async def living(self, settings: Settings = SETTINGS, **more: Any) -> AsyncIterator[Service]:
        """A service that runs, and is killed at the end."""
        self.lives += 1
        ports = ServicePorts(
            self.clock,
            self.js,
            self.store,
            self.publisher,
            self.policies,
            Quiet(),
            self.nothing,
            render_state=serialize.state_value,
            render_heartbeat=lambda view, now, leaving: serialize.heartbeat(view, "here", now, leaving),
        )
        service = build_service(settings, ports, f"life-{self.lives}", **more)
        task = asyncio.create_task(service.run(asyncio.Event(), 1.0))
        try:
            yield service
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def published(self, service: Service, status: Status) -> None:
        """Let time pass until the subject's status is this one, stored and published."""

        def settled() -> bool:
            state = service.registry.subjects.get(SUBJECT)
            return bool(state and state.record and state.record.announced is status and not state.record.unsent)

        await self.clock.until(settled, f"{status.word} to be published")

    async def known(self, service: Service) -> None:
        """Let time pass until there is something to answer."""
        await self.clock.until(service.known.is_set, "the first round")

    def load(self, messages: int = 20_000) -> None:
        """More than the marks by default allow to wait."""
        self.js.publish(KEY.stream, SUBJECT, messages)

    def unload(self) -> None:
        self.js.purge(KEY.stream)
