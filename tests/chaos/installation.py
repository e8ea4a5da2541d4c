"""Several sidecars as processes, each behind proxies of its own, beside one server or cluster; the load on them, and
what must hold afterwards."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM
from typing import Any, Self, TypeVar

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.support.event_checks import (
    answer_problems,
    count_problems,
    event_problems,
    last_status,
    shown,
    state_problems,
)
from tests.support.proxy import Proxy
from tests.support.sidecar import SUBJECT, Sidecar, eventually

T = TypeVar("T")

FAST: dict[str, Any] = {
    "subjects": [">"],
    "pending": {"warn": 5, "critical": 10, "overload": 20},
    "drain_seconds": {"overload": 1_000_000},
    "latency_p95": {"overload": 1_000_000},
    "recovery_hold_seconds": 0.2,
    "stall_seconds": 3600,
}
"""A policy under which more than MARK waiting messages are an overload, which is over 0.2 s after they are gone."""
MARK, OVERLOAD = 20, 60
CONSUMER = ConsumerConfig(durable_name="router", ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000, ack_wait=2)
"""What a fetch that failed has taken comes again soon."""
EVENTS, BUCKET = "BACKPRESSURE_EVENTS", "KV_backpressure_state"
SEEN_WITHIN = 60.0
"""Seconds within which a change is published, whatever fails meanwhile."""
SETTLED_WITHIN = 15.0
"""Seconds after the last fault and the last change within which all agree."""
STEADY_FOR = 1.5
"""Seconds for which they must go on to agree."""
AFTER_A_WRITE = 1.0
"""Seconds after a write within which all agree again: one may come just when they are looked at."""
DECISIONS = 8
"""Requests whose answers are compared; any replica may answer."""
STATUS_NAMES = {-1.0: "unknown", 0.0: "inactive", 1.0: "warning", 2.0: "active"}


@dataclass
class Replica:
    """One sidecar, and the links to each server."""

    name: str
    sidecar: Sidecar
    links: list[Proxy]

    async def kill(self) -> None:
        await self.sidecar.kill()

    async def terminate(self) -> None:
        """SIGTERM once it serves: while Python itself starts, the signal ends it; it must exit with 0."""
        await self.sidecar.ready()
        code, _ = await self.sidecar.end(SIGTERM)
        assert code == 0, f"exit code {code}: {self.sidecar.log[-2000:]}"

    async def reads(self, stream: str = "ROUTER") -> bool:
        """Whether it is the one that reads a stream."""
        return bool(await self._metric("router_backpressure_reading", stream=stream))

    async def shown_status(self) -> str | None:
        """The status that its metrics page shows; None where it has none."""
        value = await self._metric("router_backpressure_status", subject=SUBJECT)
        return None if value is None else STATUS_NAMES[value]

    async def samples(self, name: str) -> list[Sample]:
        """Those of one metric on its page; none where it does not answer."""
        with suppress(OSError):
            code, text = await self.sidecar.get("/metrics")
            families = text_string_to_metric_families(text) if code == 200 else ()
            return [sample for family in families for sample in family.samples if sample.name == name]
        return []

    async def _metric(self, name: str, **labels: str) -> float | None:
        found = [sample for sample in await self.samples(name) if labels.items() <= sample.labels.items()]
        return found[0].value if found else None

    async def restart(self) -> None:
        if not self.sidecar.alive:
            await self.sidecar.start()

    def partition(self) -> None:
        """Its connections are reset, and new ones refused."""
        for link in self.links:
            link.refuse()

    def half_open(self) -> None:
        """Its connections stay open, and nothing passes."""
        for link in self.links:
            link.black_hole()

    def heal(self) -> None:
        for link in self.links:
            link.forward()


class Installation:
    """`async with Installation(where, urls, ports, 3) as installation:` is ready inside and gone after."""

    def __init__(
        self,
        where: Path,
        ports: Sequence[int],
        n: int,
        *,
        policy: Mapping[str, Any] = FAST,
        observe: Mapping[str, Any] | None = None,
        stream: StreamConfig | None = None,
        consumer: ConsumerConfig = CONSUMER,
        copies: int = 1,
        settings: Mapping[str, Any] | None = None,
        login: str = "",
        purges: bool = False,
    ) -> None:
        """`purges`: an overload ends with a purge, which a server that is killed does not take back; it forgets which
        messages were delivered and acknowledged in the last seconds before."""
        self._where, self._ports, self._n, self._copies = where, ports, n, copies
        self.config: dict[str, Any] = {
            "policies": [dict(policy)],
            "observe": dict(observe or {}),
            "publish": {"replicas": copies},
            **(settings or {}),
        }
        self._stream, self._consumer, self._login, self._purges = stream, consumer, login, purges
        self.nc: Client
        self.replicas: dict[str, Replica] = {}
        self.overloads = 0
        """How many there were: the truth."""
        self.unsure = 0
        """How many more may be published: one that goes on while the stores that have it are lost may be published
        again."""
        self._events: list[dict[str, Any]] = []
        self._read_to = 0
        self.live: list[dict[str, Any]] = []
        """Every event as it was published, each once; some may be missing where the server was away."""
        self.trust_live = False
        """Whether `events` are those published, not those in the stream: for what removes events from the stream."""
        self._events_created: Any = None
        self._stack = AsyncExitStack()

    def __getitem__(self, i: int) -> Replica:
        return self.replicas[f"i{i}"]

    async def __aenter__(self) -> Self:
        try:
            urls = [f"nats://{self._login}127.0.0.1:{port}" for port in self._ports]
            self.nc = await nats.connect(
                urls, reconnect_time_wait=0.1, max_reconnect_attempts=-1, ping_interval=1, error_cb=_ignore
            )
            self._stack.push_async_callback(self.nc.close)
            await self.nc.subscribe("backpressure.v1.event.>", cb=self._receive)
            await self.make_stream()
            for i in range(self._n):
                await self.add(f"i{i}")
            for replica in self.replicas.values():
                await replica.sidecar.observing()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def make_stream(self) -> None:
        config = self._stream or StreamConfig(name="ROUTER", subjects=[SUBJECT])
        config.num_replicas = self._copies
        await lasting(lambda: self.nc.jetstream().add_stream(config))
        await self.make_consumer()

    async def make_consumer(self) -> None:
        await lasting(lambda: self.nc.jetstream().add_consumer("ROUTER", self._consumer))

    async def add(
        self, name: str, environment: Mapping[str, str] | None = None, login: str | None = None, **config: Any
    ) -> Replica:
        """One more replica; `config` replaces parts of the settings of all."""
        links = [await self._stack.enter_async_context(Proxy(port)) for port in self._ports]
        user = self._login if login is None else login
        url = ",".join(f"nats://{user}127.0.0.1:{link.port}" for link in links)
        sidecar = Sidecar(self._where, url, {"instance": name, **self.config, **config})
        sidecar.environment |= environment or {}
        await self._stack.enter_async_context(sidecar)
        self.replicas[name] = Replica(name, sidecar, links)
        return self.replicas[name]

    # What the load does

    async def overload(self, n: int = OVERLOAD, *, seen: bool = True) -> None:
        """An overload begins; with `seen` this returns once it is published."""
        self.overloads += 1
        await self.publish(n)
        if seen:
            await self.led_to("warning", "active")

    async def publish(self, n: int) -> None:
        for _ in range(n):
            await lasting(lambda: self.nc.jetstream().publish(SUBJECT, b"decide", timeout=1))

    async def calm(self, *, seen: bool = True) -> None:
        """All that waits is done; with `seen` this returns once that is published."""
        if self._purges:
            await lasting(lambda: self.nc.jetstream(timeout=1).purge_stream("ROUTER"))
        else:
            await self.work()
        if seen:
            await self.led_to("inactive")

    async def work(self, leave: int = 0) -> None:
        """Take and acknowledge messages until no more than `leave` wait."""
        js = self.nc.jetstream()
        while True:
            info = await lasting(lambda: js.consumer_info("ROUTER", "router"))
            if info.num_pending <= leave and not info.num_ack_pending:
                return
            with suppress(Exception):
                pull = await js.pull_subscribe_bind("router", "ROUTER")
                for message in await pull.fetch(max(1, min(500, info.num_pending - leave)), timeout=0.5):
                    await message.ack()
                await pull.unsubscribe()
                await self.nc.flush()

    async def led_to(self, *statuses: str, seconds: float = SEEN_WITHIN) -> None:
        """Wait until the published events lead to one of these."""

        async def is_published() -> bool:
            return last_status(await self.events())[0] in statuses

        try:
            await eventually(is_published, f"events that lead to {statuses}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await self.report()}") from None

    async def published(self, kind: str, n: int = 1, seconds: float = SEEN_WITHIN) -> None:
        """Wait until there are `n` events of a type."""

        async def enough() -> bool:
            return sum(event["type"] == kind for event in await self.events()) >= n

        await eventually(enough, f"{n} {kind}", seconds)

    # What is to be seen

    async def events(self) -> list[dict[str, Any]]:
        """All events that the stream has, in its order; those known where it does not answer."""
        if self.trust_live:
            return self.live
        with suppress(Exception):
            js = self.nc.jetstream(timeout=1)
            info = await js.stream_info(EVENTS)
            if info.created != self._events_created or info.state.last_seq < self._read_to:
                self._events, self._read_to, self._events_created = [], 0, info.created
            for n in range(max(self._read_to + 1, info.state.first_seq), info.state.last_seq + 1):
                self._events.append(json.loads((await js.get_msg(EVENTS, n)).data or b""))
                self._read_to = n
        return self._events

    async def _receive(self, message: Msg) -> None:
        event = json.loads(message.data)
        if all(event["id"] != other["id"] for other in self.live):
            self.live.append(event)

    def forget_events(self) -> None:
        """Read the whole stream again: the server has another one now."""
        self._events, self._read_to = [], 0

    async def state(self, subject: str = SUBJECT) -> dict[str, Any] | None:
        """What is stored; None where there is no key, or nothing that can be read."""
        try:
            message = await self.nc.jetstream(timeout=1).get_last_msg(BUCKET, f"$KV.backpressure_state.{subject}")
            state = json.loads(message.data or b"")
        except Exception:
            return None
        return state if isinstance(state, dict) and "record" in state else None

    async def gauges(self) -> dict[str, str | None]:
        """The status that the metrics page of each replica shows; None where it has none."""
        return {name: await replica.shown_status() for name, replica in self._present()}

    async def reader(self) -> int:
        """The number of the one replica that reads the watched stream."""

        async def only_one() -> list[int]:
            reading = [n for n, (_, replica) in enumerate(self._present()) if await replica.reads()]
            return reading if len(reading) == 1 else []

        number: int = (await eventually(only_one, "one replica to read the stream", SETTLED_WITHIN))[0]
        return number

    async def stored(self, status: str, seconds: float = SEEN_WITHIN) -> None:
        """Wait until this status is stored, whether its event is published or not."""

        async def is_stored() -> bool:
            state = await self.state()
            return state is not None and state["status"] == status

        await eventually(is_stored, f"{status} to be stored", seconds)

    async def decisions(self) -> dict[str, dict[str, Any] | None]:
        """Answers of the decision service, by any replica."""
        answers: dict[str, dict[str, Any] | None] = {}
        for n in range(DECISIONS):
            try:
                reply = await self.nc.request(f"backpressure.v1.decide.gateway.{SUBJECT}", timeout=1)
                answers[f"answer {n}"] = json.loads(reply.data)
            except Exception:
                answers[f"answer {n}"] = None
        return answers

    async def summaries(self) -> list[dict[str, Any]]:
        """Answers to `get.metrics` about the last day, by any replica."""
        subject, payload = f"backpressure.v1.get.metrics.{SUBJECT}", json.dumps({"windows": ["24h"]}).encode()
        return [json.loads((await self.nc.request(subject, payload, timeout=2)).data) for _ in range(DECISIONS)]

    async def counter(self, metric: str, label: str) -> Counter[str]:
        """The sum of a counter of all replicas, by one of its labels. It begins at 0 with each process."""
        counts = Counter[str]()
        for _, replica in self._present():
            for sample in await replica.samples(metric):
                counts[sample.labels[label]] += int(sample.value)
        return +counts

    async def count_alike(self) -> None:
        """All replicas count the events that were published, those of the others and from before their start too; of
        events that somebody deletes, at least one does."""
        problems: list[str] = []

        async def same() -> bool:
            events, state = await self.events(), await self.state()
            problems[:] = ["nothing is stored"]
            if state is not None:
                each = [count_problems(events, state, [answer]) for answer in await self.summaries()]
                problems[:] = sorted({problem for of_one in each for problem in of_one})
                if self.trust_live and [] in each:  # only who published an event surely has one that was deleted
                    problems[:] = [problem for problem in problems if not problem.startswith("a window")]
            return not problems

        try:
            await eventually(same, "all to count the same events", SETTLED_WITHIN)
        except AssertionError as error:
            raise AssertionError("\n".join([*problems, str(error), await self.report()])) from None

    async def problems(self) -> list[str]:
        """Where bucket, events, answers and metrics disagree now."""
        state, events = await self.state(), await self.events()
        if state is None:
            return state_problems(events, state)
        gauges = (await self.gauges()).items()
        return [
            *state_problems(events, state),
            *answer_problems(state, await self.decisions()),
            *(
                f"{name} shows {status}, stored is {state['status']}"
                for name, status in gauges
                if (status or "unknown") != state["status"]  # a subject whose consumers are gone has none
            ),
        ]

    async def agree(self, seconds: float = SETTLED_WITHIN) -> None:
        """Bucket, events, answers and metrics agree within this time, and go on to."""
        problems: list[str] = []

        async def agreed() -> bool:
            problems[:] = await self.problems()
            return not problems

        try:
            await eventually(agreed, "all to agree", seconds)
            await asyncio.sleep(STEADY_FOR)
            await eventually(agreed, "all to agree still", AFTER_A_WRITE)
        except AssertionError:
            raise AssertionError("\n".join([*problems, await self.report()])) from None

    async def check(self) -> None:
        """All agree, the events are right, there are as many incidents as overloads, all of them closed, and no sidecar
        has failed."""
        await self.agree()
        events = await self.events()
        tries = [event_problems(events, self.overloads + n) for n in range(self.unsure + 1)]
        problems = min(tries, key=len)
        if not self.unsure:  # else the stores may have forgotten events
            stored = {event["id"]: event for event in events}
            problems += [f"published, but not stored: {e}" for e in self.live if stored.get(e["id"]) != e]
            await self.count_alike()
        problems += [f"{r.name} exited: {r.sidecar.log[-2000:]}" for r in self.replicas.values() if _failed(r.sidecar)]
        assert not problems, "\n".join([*problems, await self.report()])

    async def report(self) -> str:
        state = await self.state()
        stored = {k: state[k] for k in ("status", "action", "incident", "epoch", "seq", "freshness")} if state else None
        return f"events:\n{shown(await self.events())}\nstored: {stored}\nmetrics: {await self.gauges()}"

    def _present(self) -> list[tuple[str, Replica]]:
        return [(name, replica) for name, replica in self.replicas.items() if replica.sidecar.alive]


def _failed(sidecar: Sidecar) -> bool:
    """Whether it ended by itself with an error, not by a signal of ours."""
    return sidecar.process is not None and (sidecar.process.returncode or 0) > 0


async def lasting(request: Callable[[], Awaitable[T]], seconds: float = SEEN_WITHIN) -> T:
    """The answer to a request that may fail while the server is away."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await request()
            except Exception:
                await asyncio.sleep(0.1)


async def _ignore(error: Exception) -> None:
    """What breaks the test's own connection is what the test does."""
