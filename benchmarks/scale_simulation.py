"""Runs the poller of the service on a simulated server in virtual time: how late crossings are read, and the cost.

Poller, read plan and budget are those of the service. What is simulated: the server, which answers after the time that
was measured of a real one; the clock; and the evaluation of samples, of which only the headroom is taken, unless
`evaluate` is set. In a large stream only SHOWN consumers are simulated, the others are like them: all that the
poller decides depends on is whether more than 64 consumers of a stream must be read, and how many pages a list has.
Of several replicas one is simulated: the others are like it.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache

from msgspec import Struct
from msgspec.structs import replace

from benchmarks.judging import Time, World, idle
from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.samples import Sample, StreamLook
from nats_backpressure.core.reading.budget import Budget, RequestBudget
from nats_backpressure.core.reading.headroom import headroom
from nats_backpressure.core.reading.stream_plan import PAGE
from nats_backpressure.core.subject.inputs import Effect, PublishEvent
from nats_backpressure.core.subject.membership import Membership, ReadState
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.policy.schema import Guard
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.runtime.followed_streams import FollowedStream
from nats_backpressure.runtime.intake import Intake
from nats_backpressure.runtime.observations import ConsumersReading, StreamsReading
from nats_backpressure.runtime.poller import Poller
from nats_backpressure.runtime.subject_registry import SubjectRegistry
from nats_backpressure.runtime.tasks import cancel_and_wait

OBSERVE = Settings().observe
CROSSING, OVERLOADED = 1001, 5000
"""Messages of a burst, one above the default overload mark of `pending`; and pending of a consumer that stays hot."""
SHOWN = 72
"""Consumers simulated of a stream at most: more than are ever read one by one."""
LATENCY = 0.5e-3
"""Seconds from the request to the reply, without the work of the server."""
AT_ONCE, SINGLES_AT_ONCE = 8, 4
"""Requests under way, and reads of single consumers in one reading, as in the observer."""
FLOW = 10.0
"""Messages per second of a busy stream."""
SETTLED = 15.0
"""Seconds after the second reading of all, before crossings begin."""
DRAIN = 0.2
"""Seconds from a crossing that was seen until the consumer is empty."""


class Costs(Struct, frozen=True):
    """Measured seconds of CPU time, and bytes."""

    server_member: float = 18e-6
    """Server: one consumer in a list."""
    server_single: float = 80e-6
    """Server: one CONSUMER.INFO or STREAM.INFO."""
    server_stream: float = 20e-6
    """Server: one stream in STREAM.LIST."""
    client_request: float = 250e-6
    client_decode: float = 5e-6
    """Client: decoding one listed consumer."""
    client_idle: float = 5e-6
    """Client: evaluating a sample that shows nothing new."""
    client_moving: float = 60e-6
    """Client: evaluating a sample that moved."""
    client_stream: float = 15e-6
    """Client: one stream in STREAM.LIST."""
    client_tick: float = 2e-6
    """Client: what each subject costs every second."""
    client_consumer_bytes: float = 4096.0
    client_base_bytes: float = 45 * 2.0**20
    server_consumer_bytes: float = 51 * 1024.0


class Deployment(Struct, frozen=True):
    """What is watched, and with which settings."""

    consumers: int
    streams: int
    busy: float = 0.0
    """The share of streams in which messages flow."""
    hot: float = 0.0
    """The share of consumers that are overloaded all the time."""
    replicas: int = 1
    """How many share the streams, and with them the budget."""
    requests_per_second: float = OBSERVE.api_requests_per_second
    """Of all replicas together."""
    server_share: float = OBSERVE.server_share

    @property
    def pages(self) -> int:
        """Of the list of streams."""
        return -(-self.streams // PAGE)


class Outcome(Struct, frozen=True):
    """What came of a simulation; the rates are those of all replicas together."""

    delays: tuple[float, ...]
    """Seconds from a crossing to its reading, or to its event if samples are evaluated."""
    seconds: float
    """Virtual seconds that were measured."""
    requests: float
    """Per second."""
    server: float
    """Server seconds per second."""
    client: float
    """CPU seconds per second, computed from the costs."""
    memory: float
    """Bytes, computed from the costs."""
    stretch: float
    """How much longer intervals are than planned, because the budget is too small."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time leaps to the next timer: an hour takes as long as the work in it."""

    def __init__(self) -> None:
        leap = _Leap()
        super().__init__(leap)
        leap.loop, self.at = self, 1000.0

    def time(self) -> float:
        return self.at


class _Leap(selectors.SelectSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.loop.at += timeout
        return ready


class VirtualClock:
    """The Clock of a VirtualLoop."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def now(self) -> Now:
        mono = asyncio.get_running_loop().time()
        return Now(mono, mono + 1.8e9)

    def mono(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            pass

    def end_sleeps(self) -> None: ...

    def lateness(self) -> float | None:
        return None

    def random(self) -> float:
        return self._random.random()


class Stream:
    """One simulated stream with its consumers."""

    def __init__(self, n: int, consumers: int, shown: int, busy: bool) -> None:
        self.name, self.consumers, self.busy = f"S{n}", consumers, busy
        self._last_seq, self._since = 1_000_000, 1000.0
        self.samples = [idle(self.name, m, f"orders.{n}.{m}") for m in range(shown)]
        if busy:
            self.samples = [replace(sample, inflight=1) for sample in self.samples]

    def last_seq(self, now: float) -> int:
        return self._last_seq + (int(FLOW * (now - self._since)) if self.busy else 0)

    def look(self, now: float) -> StreamLook:
        last = self.last_seq(now)
        subjects = (f"orders.{self.name[1:]}.>",)
        return StreamLook(self.name, "2026-11-26T00:00:00Z", 1, last, last, subjects, consumers=self.consumers)

    def fill(self, n: int, messages: int) -> None:
        """These arrive for one consumer."""
        self._last_seq += messages
        self.samples[n] = replace(self.samples[n], pending=messages)

    def drain(self, n: int, now: float) -> None:
        """It takes and acknowledges all that is pending."""
        full, last = self.samples[n], self.last_seq(now)
        taken = full.delivered_consumer + full.pending
        self.samples[n] = replace(
            full,
            pending=0,
            delivered_stream=last,
            delivered_consumer=taken,
            floor_stream=last - full.inflight,
            floor_consumer=taken - full.inflight,
        )


class SimulatedServer:
    """The Observer: it answers after the time that a real server would take, and counts what it costs."""

    def __init__(self, deployment: Deployment, streams: Sequence[Stream], costs: Costs, clock: VirtualClock) -> None:
        self._deployment, self._costs, self._clock = deployment, costs, clock
        self.streams_by_name = {stream.name: stream for stream in streams}
        self.requests = RequestBudget(deployment.requests_per_second / deployment.replicas)
        self._turn = asyncio.Semaphore(AT_ONCE)
        self._owed = 0.0
        self.reset()

    def reset(self) -> None:
        """Count from here on."""
        self.asked = self.looks = 0
        self.server_seconds = 0.0
        self.still = self.moving = 0.0
        """Samples read of consumers at rest, and of others."""

    async def streams(self) -> StreamsReading:
        """The list of streams: one of the replicas asks for it, so ours pays its part only."""
        deployment = self._deployment
        each = deployment.streams * self._costs.server_stream / deployment.pages
        self._owed += deployment.pages / deployment.replicas
        self.looks += 1
        took = 0.0
        for _ in range(deployment.pages):
            paid, self._owed = self._owed >= 1, self._owed - (self._owed >= 1)
            took += await self._ask(each, paid, counted=False)
        now = self._clock.mono()
        looks = tuple(stream.look(now) for stream in self.streams_by_name.values())
        return StreamsReading(looks, True, took, 1)

    async def stream(self, name: str) -> StreamsReading:
        took = await self._ask(self._costs.server_single)
        return StreamsReading((self.streams_by_name[name].look(self._clock.mono()),), False, took, 1)

    async def consumers(self, stream: str, names: Sequence[str] = ()) -> ConsumersReading:
        of = self.streams_by_name[stream]
        samples, took = await (self._singly(of, names) if names else self._list(of))
        took += await self._ask(self._costs.server_single)
        look, unshown = of.look(self._clock.mono()), 0 if names else of.consumers - len(of.samples)
        return ConsumersReading(look, tuple(samples), (), not names, (), took, 1, unshown, partial=bool(names))

    async def consumer(self, key: ConsumerKey) -> Sample:
        await self._ask(self._costs.server_single)
        return self._sample(self.streams_by_name[key.stream], int(key.consumer[1:]), 1.0)

    async def _list(self, stream: Stream) -> tuple[list[Sample], float]:
        pages, took = -(-stream.consumers // PAGE), 0.0
        each = -(-len(stream.samples) // pages)
        samples: list[Sample] = []
        for page in range(pages):
            took += await self._ask(stream.consumers / pages * self._costs.server_member)
            shown = range(page * each, min(len(stream.samples), (page + 1) * each))
            samples += [self._sample(stream, n, stream.consumers / len(stream.samples)) for n in shown]
        return samples, took

    async def _singly(self, stream: Stream, names: Iterable[str]) -> tuple[list[Sample], float]:
        samples: list[Sample] = []
        seconds, left = 0.0, iter(names)

        async def read() -> None:
            nonlocal seconds
            for name in left:
                seconds += await self._ask(self._costs.server_single)
                samples.append(self._sample(stream, int(name[1:]), 1.0))

        await asyncio.gather(*(read() for _ in range(SINGLES_AT_ONCE)))
        return samples, seconds

    def _sample(self, stream: Stream, n: int, stands_for: float) -> Sample:
        sample = stream.samples[n]
        if stream.busy or sample.pending:
            self.moving += stands_for
        else:
            self.still += stands_for
        return replace(sample, at=self._clock.now())

    async def _ask(self, seconds: float, paid: bool = True, counted: bool = True) -> float:
        if paid and (wait := self.requests.take(self._clock.mono())) > 0:
            await asyncio.sleep(wait)
        async with self._turn:
            if counted:
                self.asked += 1
                self.server_seconds += seconds
            await asyncio.sleep(seconds + LATENCY)
        return seconds + LATENCY


class ReplicaBudget(Budget, frozen=True, kw_only=True):
    """The budget of one replica; the list of streams is looked at as often as that of all replicas allows."""

    whole: Budget
    pages: int
    """Of the list of streams; `own_pages`: as if there were only those that the replica reads."""
    own_pages: int

    def look_interval(self, requests: int, took: float) -> float:
        if requests > self.own_pages:  # not by list, but each of its own streams
            return Budget.look_interval(self, requests, took)
        return self.whole.look_interval(self.pages, took)


def _budget(deployment: Deployment) -> Budget:
    shortest, longest = OBSERVE.min_interval_ms / 1000, OBSERVE.max_interval_ms / 1000
    rate, share = deployment.requests_per_second, deployment.server_share
    whole = Budget(shortest, longest, rate, share)
    part = rate / deployment.replicas
    own = -(-deployment.streams // deployment.replicas // PAGE)
    return ReplicaBudget(shortest, longest, part, share, whole=whole, pages=deployment.pages, own_pages=own)


@cache
def _room(pending: int, inflight: int) -> float:
    """The headroom of a consumer under the default policy."""
    world = World([["orders.0"]])
    for _ in range(2):
        world.read(lambda sample, n: replace(sample, pending=pending, inflight=inflight))
    (state,) = world.registry.subjects.values()
    (member,) = state.members.values()
    return headroom(member)


class RoomRegistry(SubjectRegistry):
    """A registry that only knows how much room each sample leaves."""

    def headroom(self, sample: Sample, subjects: Iterable[str]) -> float:
        return _room(sample.pending, sample.inflight)


class ReadOnlyIntake(Intake):
    """Notes which consumers are read above their mark, and evaluates nothing."""

    def __init__(self, registry: SubjectRegistry, clock: VirtualClock, on_overload: Callable[[str, str], None]) -> None:
        super().__init__(registry, clock, (WatchEntry("*"),), (), lambda what, key, why: None)
        self._on_overload = on_overload

    def sample(
        self, stream: FollowedStream, sample: Sample, members_of: Collection[str], *, early: bool = False
    ) -> tuple[str, ...]:
        stream.under[sample.key] = sample.config.filters
        if sample.pending >= CROSSING:
            self._on_overload(sample.key.stream, sample.key.consumer)
        return sample.config.filters

    def remove_uncounted_members(self, stream: FollowedStream, shown: ReadState) -> Membership:
        return Membership((), frozenset(), frozenset())


class _VirtualTime(Time):
    def now(self) -> Now:
        mono = asyncio.get_running_loop().time()
        return Now(mono, mono + 1.8e9)


class EvaluatedWorld(World):
    """The whole intake and registry of the service; notes the events that it publishes."""

    def __init__(self, on_overload: Callable[[str, str], None]) -> None:
        self._on_overload = on_overload
        super().__init__([], _VirtualTime())

    def _perform(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, PublishEvent) and effect.event.now is not Status.INACTIVE:
                _, stream, consumer = effect.subject.split(".")
                self._on_overload(f"S{stream}", f"c{consumer}")
        super()._perform(effects)


class Simulation:
    """One replica with its part of the streams, and bursts that bring consumers above their mark."""

    def __init__(self, deployment: Deployment, costs: Costs, evaluate: bool, seed: int) -> None:
        self.deployment, self.costs, self._evaluate = deployment, costs, evaluate
        self._dice, self._clock = random.Random(seed), VirtualClock(seed)
        self.streams = _streams(deployment, evaluate)
        self.server = SimulatedServer(deployment, self.streams, costs, self._clock)
        self._seen: dict[tuple[str, str], asyncio.Future[float]] = {}
        self.registry, intake = self._evaluated() if evaluate else self._read_only()
        self.poller = Poller(
            self.server,
            self._clock,
            intake,
            _budget(deployment),
            stale_after=10.0,
            count=lambda what: None,
            on_streams=lambda reading: None,
            on_read=lambda seconds: None,
            requests=self.server.requests,
        )

    def _read_only(self) -> tuple[SubjectRegistry, Intake]:
        policies = ActivePolicies((), Guard(), trust_metadata=False)
        registry = RoomRegistry(Settings(), self._clock, policies, "bench", lambda effects: None)
        return registry, ReadOnlyIntake(registry, self._clock, self._overloaded)

    def _evaluated(self) -> tuple[SubjectRegistry, Intake]:
        world = EvaluatedWorld(self._overloaded)
        return world.registry, world.intake

    def _overloaded(self, stream: str, consumer: str) -> None:
        seen = self._seen.get((stream, consumer))
        if seen is not None and not seen.done():
            seen.set_result(self._clock.mono())

    async def run(self, crossings: int, walks: int, pause: tuple[float, float], most_seconds: float) -> Outcome:
        """Start, settle, then walks of crossings."""
        tasks = [asyncio.create_task(self.poller.run()), asyncio.create_task(self._tick())]
        try:
            await asyncio.sleep(self._warm_up())
            self._heat()
            await asyncio.sleep(SETTLED)
            self.server.reset()
            started = self._clock.mono()
            end, walks = started + most_seconds, min(walks, len(self.streams))
            if not crossings:
                await asyncio.sleep(most_seconds)
            walked = (self._walk(self.streams[n::walks], crossings // walks, pause, end) for n in range(walks))
            delays = [each for delays in await asyncio.gather(*walked) for each in delays]
            return self._outcome(delays, self._clock.mono() - started)
        finally:
            await cancel_and_wait(tasks)

    def _warm_up(self) -> float:
        """Seconds until all was read twice."""
        pages = sum(-(-stream.consumers // PAGE) + 1 for stream in self.streams)
        part = self.deployment.requests_per_second / self.deployment.replicas
        return max(2 * OBSERVE.max_interval_ms / 1000, 3 * pages / part)

    def _heat(self) -> None:
        """Overload the consumers that stay hot: at most one in a stream as long as there are streams."""
        hot = round(self.deployment.hot * self.deployment.consumers / self.deployment.replicas)
        for n in range(hot):
            stream = self.streams[n % len(self.streams)]
            if n // len(self.streams) < len(stream.samples) - 1:
                stream.fill(n // len(self.streams), OVERLOADED)

    async def _tick(self) -> None:
        while self._evaluate:
            await asyncio.sleep(1.0)
            self.registry.tick()

    async def _walk(
        self, streams: Sequence[Stream], crossings: int, pause: tuple[float, float], end: float
    ) -> list[float]:
        delays: list[float] = []
        for _ in range(crossings):
            await asyncio.sleep(self._dice.uniform(*pause))
            if self._clock.mono() >= end:
                break
            stream = self._dice.choice(streams)
            n = self._dice.choice([n for n, sample in enumerate(stream.samples) if not sample.pending])
            crossed = self._clock.mono()
            seen: asyncio.Future[float] = asyncio.get_running_loop().create_future()
            self._seen[stream.name, f"c{n}"] = seen
            stream.fill(n, CROSSING)
            delays.append(await seen - crossed)
            await asyncio.sleep(DRAIN)
            stream.drain(n, self._clock.mono())
        return delays

    def _outcome(self, delays: Sequence[float], seconds: float) -> Outcome:
        of, server, costs = self.deployment, self.server, self.costs
        looks, replicas = server.looks / seconds, of.replicas
        client = server.asked * costs.client_request
        client += server.still * (costs.client_decode + costs.client_idle)
        client += server.moving * (costs.client_decode + costs.client_moving)
        lists = looks * (of.pages * costs.client_request + of.streams * costs.client_stream)
        return Outcome(
            delays=tuple(sorted(delays)),
            seconds=seconds,
            requests=replicas * server.asked / seconds + looks * of.pages,
            server=replicas * server.server_seconds / seconds + looks * of.streams * costs.server_stream,
            client=replicas * client / seconds + lists + of.consumers * costs.client_tick,
            memory=replicas * costs.client_base_bytes + of.consumers * costs.client_consumer_bytes,
            stretch=self.poller.schedule.load.stretch,
        )


def _streams(deployment: Deployment, evaluate: bool) -> list[Stream]:
    """Those of one replica."""
    n = max(1, round(deployment.streams / deployment.replicas))
    each = deployment.consumers // deployment.streams
    shown = each if evaluate else min(each, SHOWN)
    return [Stream(s, each, shown, busy=s < math.ceil(deployment.busy * n)) for s in range(n)]


def simulate(
    deployment: Deployment,
    costs: Costs,
    crossings: int = 200,
    *,
    walks: int = 2,
    pause: tuple[float, float] = (0.7, 1.7),
    most_seconds: float = 600.0,
    evaluate: bool = False,
    seed: int = 1,
) -> Outcome:
    """Simulate a deployment. `walks`: crossings at a time, each after a `pause` (seconds, a random time in this range)
    since the one before was drained; without crossings it runs for `most_seconds`. `evaluate`: with the whole intake
    and registry of the service, up to some 10,000 consumers."""

    async def work() -> Outcome:
        return await Simulation(deployment, costs, evaluate, seed).run(crossings, walks, pause, most_seconds)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())
