"""Several whole services on one server: with crashes, suspended processes, broken links, and stores that go back.

Each replica has its own clock and its own link; the server, its streams and buckets outlive them all. A crash is
between any two steps of a replica: a request that is under way may still be applied.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import math
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model.samples import ConsumerConfig, Sample, StreamLook
from nats_backpressure.core.reading.budget import RequestBudget
from nats_backpressure.core.reading.server_time import ServerTime
from nats_backpressure.protocol.messages import Heartbeat
from nats_backpressure.protocol.metrics_windows import MetricsRequest
from nats_backpressure.protocol.requests import GatewayRequest, RequestRefused
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.queries import serialize
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.event_cache import EventCache
from nats_backpressure.queries.history import HistoryQueries
from nats_backpressure.queries.shared_grants import SharedGrants
from nats_backpressure.recording.hint_exchange import HintExchange
from nats_backpressure.recording.reading_exchange import ReadingExchange
from nats_backpressure.runtime.observations import PROMPT, ConsumersReading, Hint, StreamsReading
from nats_backpressure.runtime.ports import Stored, Unavailable
from nats_backpressure.runtime.record_follower import RecordFollower
from nats_backpressure.runtime.replicas import Replicas as Others
from nats_backpressure.runtime.service import Service
from nats_backpressure.runtime.service_builder import ServiceListeners, ServicePorts, build_service
from nats_backpressure.runtime.tasks import cancel_and_wait
from tests.fakes.clock import FakeClock, Waiter
from tests.fakes.hint_source import FakeHintSource
from tests.fakes.observer import FakeJetStream
from tests.fakes.replica_channel import FakeBus, FakeReplicaChannel
from tests.fakes.stores import FakeEventPublisher, FakeStateStore
from tests.simulations.remote_events import RemoteEvents
from tests.simulations.running_service import FakePolicies, Quiet
from tests.support.event_checks import answer_problems, event_problems, shown, state_problems
from tests.support.policies import entry

KEY = ConsumerKey("ROUTER", "router")
SUBJECT = "decide"
BEHIND = 0.3
"""Seconds after which a write that the list of streams shows must have arrived."""
NO_ANSWER = 5.0
"""Seconds after which a request without an answer fails."""
ROUNDING = 1e-9
"""Seconds by which two clocks may differ because of how floats are rounded."""
AGREE_WITHIN = 1.0
"""Seconds after any write within which the bucket, the events and all answers agree."""
FAST: dict[str, Any] = {
    "pending": {"warn": 5, "critical": 10, "overload": 20},
    "drain_seconds": {"overload": 1_000_000},
    "recovery_hold_seconds": 0.2,
    "stall_seconds": 3600,
}
"""One signal is an overload, and a latch is released 0.2 s after its value fell."""
SETTINGS = Settings(
    policies=(entry(">", **FAST),),
    observe=Observe(min_interval_ms=100, stale_after_seconds=10, unknown_after_seconds=30),
)
OVERLOAD, MARK = 60, 20
"""Messages of an overload, and the mark above which they are one."""


class MachineClock:
    """The clocks of one machine: one that began at some time, and one that may show a wrong time of day."""

    def __init__(self, shared: FakeClock, boot: float, wall: float) -> None:
        self._shared, self._boot, self.wall = shared, boot, wall

    def now(self) -> Now:
        now = self._shared.now()
        return Now(now.mono + self._boot, now.wall + self.wall)


class Clock(FakeClock):
    """The clock of one process: it goes by its machine's clocks, and its sleepers do not wake while the process is
    suspended."""

    def __init__(self, shared: FakeClock, machine: MachineClock, seed: int) -> None:
        super().__init__(seed=seed)
        self._shared, self.machine, self.server_time = shared, machine, ServerTime()
        self._running = asyncio.Event()
        self._running.set()
        self._waiting: list[Callable[[], object]] = []

    @property
    def suspended(self) -> bool:
        return not self._running.is_set()

    def suspend(self) -> None:
        """SIGSTOP."""
        self._running.clear()

    def resume(self) -> None:
        """SIGCONT: what came meanwhile comes at once."""
        self._running.set()
        waiting, self._waiting = self._waiting, []
        for take in waiting:
            take()

    def when_running(self, take: Callable[[], object]) -> None:
        """Call it now, or when the process goes on."""
        if self.suspended:
            self._waiting.append(take)
        else:
            take()

    async def turn(self) -> None:
        """Return when the process runs."""
        await self._running.wait()

    def now(self) -> Now:
        now = self.machine.now()
        return Now(now.mono, self.server_time.wall(now.mono, now.wall))

    async def sleep(self, seconds: float) -> None:
        # Nobody wakes early: the two clocks round differently.
        await self._shared.sleep(seconds + ROUNDING if seconds > 0 else 0.0)
        await self.turn()

    async def wait(self, event: asyncio.Event, seconds: float) -> None:
        await super().wait(event, seconds)
        if not event.is_set():
            await self.turn()

    def alarm(self, seconds: float) -> Waiter:
        return self._shared.alarm(seconds + ROUNDING)


class Link:
    """The connection of one replica. While it is `cut`, each request fails at once. While it is `half_open`, nothing
    passes and nothing fails before its time; what was sent is lost, or arrives once it passes again."""

    def __init__(self, clock: Clock, shared: FakeClock, dice: random.Random, served: set[asyncio.Task[Any]]) -> None:
        self._clock, self._shared, self._dice, self._served = clock, shared, dice, served
        self._cut = self._half_open = False
        self.arrives_late = True
        """Whether what was sent while it was half open arrives when it passes again."""
        self.delay: Callable[[], float] = lambda: self._dice.uniform(0.0, 0.004)
        """Seconds of one way."""
        self.lost = 0.0
        """Share of the replies that are lost."""
        self.on_made: Callable[[], object] = lambda: None
        """Called when a connection is made again."""
        self.made_at, self.broken_at = clock.now().mono, math.inf
        self._stuck: list[Callable[[], object]] = []

    @property
    def cut(self) -> bool:
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        if cut:
            self._stuck = []
        made, self._cut = self._cut and not cut, cut
        if made:
            self.made_at = self._clock.now().mono
            self.on_made()

    @property
    def half_open(self) -> bool:
        return self._half_open

    @half_open.setter
    def half_open(self, half_open: bool) -> None:
        self._half_open = half_open
        self.broken_at = self._clock.now().mono if half_open else math.inf

    def heal(self) -> None:
        self.cut = self.half_open = False
        stuck, self._stuck = self._stuck, []
        for send in stuck if self.arrives_late else ():
            send()

    def carry(self, send: Callable[[], object]) -> None:
        """A message in either direction that nobody waits for."""
        if self.half_open:
            self._stuck.append(send)
        elif not self.cut:
            send()

    async def call(self, request: Callable[[], Awaitable[Any]]) -> Any:
        """What the server returns to a request."""
        if self.cut:
            raise Unavailable("not connected")
        if self.half_open:
            await self._until_it_passes(request)
        answer = await asyncio.shield(self._serve(request))
        if self.cut or self.half_open or self._dice.random() < self.lost:
            await self._fail()
        await self._clock.sleep(self.delay())
        return answer

    async def _until_it_passes(self, request: Callable[[], Awaitable[Any]]) -> None:
        """Wait as long as a caller does. What it sent arrives later all the same, without a caller."""
        passes = asyncio.Event()
        self._stuck.append(passes.set)
        await self._clock.wait(passes, NO_ANSWER)
        if not passes.is_set():
            self._stuck.append(lambda: self._serve(request))
            raise Unavailable("no answer")

    async def _fail(self) -> None:
        await self._clock.sleep(NO_ANSWER)
        raise Unavailable("no answer")

    def _serve(self, request: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
        """The server's part: it goes on though the replica ends."""

        async def served() -> Any:
            await self._shared.sleep(self.delay())
            return await request()

        task = asyncio.create_task(served())
        self._served.add(task)
        task.add_done_callback(lambda done: self._served.discard(done) or done.cancelled() or done.exception())
        return task


class Remote:
    """A port of a replica whose other end is the server's: every request crosses the link."""

    def __init__(self, target: Any, link: Link) -> None:
        self._target, self._link = target, link

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def request(*args: Any, **more: Any) -> Any:
            return await self._link.call(lambda: found(*args, **more))

        return request


class RemoteStateStore(Remote):
    """Writes arrive over the link. As in the adapter, the list of streams shows what did not arrive, or that the store
    is another one; then everything is read again."""

    def __init__(self, store: FakeStateStore, bucket: str, link: Link, clock: Clock) -> None:
        super().__init__(store, link)
        self._bucket, self._clock = bucket, clock
        self._arrived: deque[tuple[str, Stored]] = deque()
        self._woken = asyncio.Event()
        self._created, self._reached, self._behind_at = "", 0, math.inf
        self._read_on = -math.inf
        """When the connection was made on which everything was read."""
        self._accounted: deque[tuple[float, int]] = deque()
        """What was accounted for when each list came."""
        self.read_again = 0
        """How often a list showed that everything must be read again."""
        self._keys: set[str] = set()
        self._again = False
        self._heartbeat = b""
        self.on_heartbeat: Callable[[Heartbeat], None] = lambda heartbeat: None
        self.on_current: Callable[[], object] = lambda: None

    @property
    def is_current(self) -> bool:
        return self._link.made_at == self._read_on

    def connected(self) -> None:
        self._again = True
        self._woken.set()

    async def load_all(self) -> Any:
        made_at = self._link.made_at
        loaded = await self._link.call(self._target.load_all)
        self._read_on = made_at
        return loaded

    async def write_heartbeat(self, value: bytes) -> bool:
        self._heartbeat = value
        written: bool = await self._link.call(lambda: self._target.write_heartbeat(value))
        return written

    def _heartbeat_arrived(self, value: bytes) -> None:
        if value != self._heartbeat:
            heartbeat = msgspec.json.decode(value, type=Heartbeat)
            self._link.carry(lambda: self._clock.when_running(lambda: self.on_heartbeat(heartbeat)))

    def take_looks(self, looks: Sequence[StreamLook], asked_at: float) -> None:
        look = next(look for look in looks if look.name == self._bucket)
        now = self._clock.now().mono
        if look.last_seq <= self._reached:
            self._behind_at = math.inf
        elif self._behind_at == math.inf:
            self._behind_at = now + BEHIND
        while len(self._accounted) > 1 and self._accounted[1][0] <= asked_at:
            self._accounted.popleft()
        accounted = max((n for at, n in self._accounted if at <= asked_at), default=0)
        other = self._created not in ("", look.created) or look.last_seq < accounted
        lost = look.last_seq == self._reached and look.messages < len(self._keys)
        self._created = look.created
        self._accounted.append((now, self._reached))
        if other or lost or now >= self._behind_at or self._link.made_at != self._read_on:
            self._again = True
            self.read_again += 1
            self._accounted.clear()
            self._woken.set()

    async def follow(self, take: Callable[[str, Stored], None]) -> None:
        with self._target.followed(self._arrive, self._heartbeat_arrived):
            self._again = True  # what was stored since the start
            while True:
                if self._again:
                    with suppress(Unavailable):
                        await self._read_all(take)
                while self._arrived:
                    await self._clock.sleep(self._link.delay())
                    subject, stored = self._arrived.popleft()
                    self._account(subject, stored)
                    take(subject, stored)
                self._woken.clear()
                await self._clock.wait(self._woken, 1.0)
                await self._clock.turn()

    def _arrive(self, subject: str, stored: Stored) -> None:
        if not (self._link.cut or self._link.half_open) and stored.revision:
            self._arrived.append((subject, stored))
            self._woken.set()

    async def _read_all(self, take: Callable[[str, Stored], None]) -> None:
        made_at = self._link.made_at
        entries = await self._link.call(self._target.entries)
        self._read_on = made_at
        self.on_current()
        self._again, self._reached, gone = False, 0, self._keys - entries.keys()
        self._keys.clear()
        for subject, stored in (*entries.items(), *((subject, Stored(None, 0)) for subject in gone)):
            self._account(subject, stored)
            take(subject, stored)
        self._keys -= gone

    def _account(self, subject: str, stored: Stored) -> None:
        self._keys.add(subject)
        self._reached = max(self._reached, stored.revision)


class RemoteObserver(Remote):
    """Samples have the time of the replica at which they arrived; the list of streams shows our own streams, too."""

    def __init__(self, replicas: Replicas, link: Link, clock: Clock, requests: RequestBudget | None) -> None:
        super().__init__(replicas.js, link)
        self._replicas, self._clock, self._requests = replicas, clock, requests

    async def _pay(self, requests: int) -> None:
        for _ in range(requests if self._requests is not None else 0):
            assert self._requests is not None
            if (wait := self._requests.take(self._clock.now().mono)) > 0:
                await self._clock.sleep(wait)

    async def streams(self) -> StreamsReading:
        await self._pay(1)
        reading = await self._link.call(self._target.streams)
        return replace(reading, looks=(*reading.looks, *self._replicas.own_streams()))

    async def consumers(self, stream: str, names: Any = ()) -> ConsumersReading:
        await self._pay(1 + max(1, len(names)))
        asked = self._clock.now()
        reading = await self._link.call(lambda: self._target.consumers(stream, names))
        return replace(reading, samples=tuple(self._arrived(sample, asked) for sample in reading.samples))

    async def consumer(self, key: ConsumerKey) -> Sample:
        asked = self._clock.now()
        return self._arrived(await self._link.call(lambda: self._target.consumer(key)), asked)

    def _arrived(self, sample: Sample, asked: Now) -> Sample:
        """As in the adapter: a reply that waited while the process stood still is as old as it is."""
        now = self._clock.now()
        late = max(0.0, now.mono - asked.mono - PROMPT)
        return replace(sample, at=Now(now.mono - late, now.wall - late))


class RemoteChannel:
    """The ReplicaChannel of a replica: its messages cross the link, too."""

    def __init__(self, channel: FakeReplicaChannel, link: Link, clock: Clock) -> None:
        self._channel, self._link, self._clock = channel, link, clock

    def publish(self, topic: str, payload: bytes) -> bool:
        self._link.carry(lambda: self._channel.publish(topic, payload))
        return not self._link.cut

    def longest(self) -> int:
        return self._channel.longest()

    def room(self) -> int:
        return self._channel.room()

    def listen(self, topic: str, receive: Callable[[str, bytes], None]) -> None:
        def arrived(topic: str, payload: bytes) -> None:
            self._link.carry(lambda: self._clock.when_running(lambda: receive(topic, payload)))

        self._channel.listen(topic, arrived)

    def listening_time(self, since: float) -> float:
        until = min(self._clock.now().mono, self._link.broken_at)
        return 0.0 if self._link.cut else max(0.0, until - max(since, self._link.made_at))


class Replica:
    """One process: it starts, is killed, is stopped in order, is suspended and goes on."""

    def __init__(self, replicas: Replicas, name: str, settings: Settings) -> None:
        self._replicas, self.name, self.settings = replicas, name, replace(settings, instance=name)
        self.clock: Clock
        self.link: Link
        self.service: Service
        self.decisions: DecisionService
        self.history: HistoryQueries
        self.channel: RemoteChannel
        self.others: Others
        self.hints: HintExchange
        self.subscribed = FakeHintSource()
        self.counted: list[Hint] = []
        """The hints that counted since its start."""
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def answering(self) -> bool:
        """Whether it is alive, runs, reaches the server, and serves."""
        usable = self.alive and not self.clock.suspended and not self.link.cut and not self.link.half_open
        return usable and self.service.known.is_set()

    def start(self) -> None:
        assert not self.alive, f"{self.name} runs already"
        replicas = self._replicas
        dice = replicas.dice
        machine = MachineClock(replicas.clock, dice.uniform(0, 1e5), replicas.skew(self.name))
        self.clock = Clock(replicas.clock, machine, dice.randrange(2**32))
        self.link = Link(self.clock, replicas.clock, dice, replicas.served)
        self.channel = RemoteChannel(replicas.bus.channel(self.name), self.link, self.clock)
        counts = Quiet()
        life = replicas.next_life()
        self.others = Others(self.channel, self.clock, self.name, f"{self.name}.{life}", counts)
        limit = self.settings.observe.api_requests_per_second if replicas.limited else None
        requests = None if limit is None else RequestBudget(limit)
        observer = RemoteObserver(replicas, self.link, self.clock, requests)
        exchange = ReadingExchange(
            self.settings, self.clock, observer, self.channel, self.others, counts.dropped, machine
        )
        ports = ServicePorts(
            self.clock,
            exchange.observer,
            RemoteStateStore(replicas.store, f"KV_{replicas.names.state_bucket}", self.link, self.clock),
            Remote(replicas.publisher, self.link),
            replicas.policies,
            counts,
            replicas.ensure,
            render_state=serialize.state_value,
            render_heartbeat=lambda view, now, leaving: serialize.heartbeat(view, self.name, now, leaving),
        )
        events = RemoteEvents(replicas.publisher, replicas.names.events_stream, self.link, self.clock)
        self.service = build_service(
            self.settings,
            ports,
            f"{self.name}.{life}",
            ServiceListeners(on_list=events.take_looks),
            replicas=self.others,
            shared=exchange.shared,
            requests=requests,
            server_time=self.clock.server_time,
            **replicas.more(self),
        )
        self.link.on_made = self.service.announce
        exchange.connect(self.service.poller, sink=self._count)
        self.hints, self.counted = exchange.hints, []
        exchange.share_hints(self.subscribed)
        registry = self.service.registry
        self.decisions = DecisionService(registry, self.clock)
        SharedGrants(self.decisions.grants, self.others, self.channel, self.clock, counts, registry.reading_of)
        take_event = RecordFollower(registry).take_event
        self.history = HistoryQueries(self.decisions, registry, EventCache(), events, self.clock, on_event=take_event)
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._run(exchange), name=self.name)

    async def _run(self, exchange: ReadingExchange) -> None:
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(each) for each in (exchange.run(), self.history.follow_events())]
            await self.service.run(self._stopping, 1.0)
            for task in others:
                task.cancel()

    def _count(self, hint: Hint) -> None:
        self.counted.append(hint)
        self.service.poller.hint(hint)

    async def kill(self) -> None:
        """At once, between two steps; it gets no reply any more, and says nothing."""
        self.link.cut = True
        self._replicas.bus.channels.pop(self.name, None)
        self.clock.resume()
        if self._task is not None:
            await cancel_and_wait((self._task,))
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error

    async def stop(self) -> None:
        """SIGTERM; returns once it has ended, for which time must pass."""
        assert self._task is not None
        self._stopping.set()
        await asyncio.shield(self._task)
        self._replicas.bus.channels.pop(self.name, None)

    def answer(self) -> dict[str, Any] | None:
        """Its decision for a gateway; None where it does not answer."""
        if not self.answering:
            return None
        try:
            decision = self.decisions.decide_gateway(SUBJECT, GatewayRequest(), self.clock.now())
        except RequestRefused:
            return None
        answer: dict[str, Any] = msgspec.to_builtins(decision)
        return answer

    def event_counts(self) -> dict[str, int]:
        """The status events of the last hour, as it counts them."""
        windows = self.history.metrics(SUBJECT, MetricsRequest(("1h",)), self.clock.now())
        counts: dict[str, int] = msgspec.to_builtins(windows.windows["1h"].events)
        return counts


class Replicas:
    """A server with one watched consumer, one state bucket and one events stream; and the replicas beside it."""

    def __init__(
        self,
        seed: int = 1,
        *,
        settings: Settings = SETTINGS,
        skew: Callable[[str], float] = lambda name: 0.0,
        more: Callable[[Replica], Mapping[str, Any]] = lambda replica: {},
        limited: bool = False,
    ) -> None:
        """`limited`: each replica requests no more than `api_requests_per_second` of its settings."""
        self.dice = random.Random(seed)
        self.clock = FakeClock(seed=seed)
        self.js = FakeJetStream(self.clock)
        self.js.add_stream(KEY.stream, (SUBJECT,))
        self.js.add_consumer(KEY, ConsumerConfig())
        self.store, self.publisher, self.policies = FakeStateStore(), FakeEventPublisher(), FakePolicies()
        self.bus = FakeBus(self.clock, seed)
        self.settings, self.skew, self.more, self.limited = settings, skew, more, limited
        self.served: set[asyncio.Task[Any]] = set()
        self.all: dict[str, Replica] = {}
        self.overloads = 0
        """How many there were: the truth."""
        self.unsure = 0
        """How many more may have been published: what holds just when a store goes back may be published again."""
        self.forgotten: set[str] = set()
        """Ids of events that a store that went back lacks."""
        self._lives = 0
        self._births = {"state": 1, "events": 1}
        self.names = Names(settings.name)

    @asynccontextmanager
    async def running(self, n: int, *files: Settings) -> AsyncIterator[Replicas]:
        """This many replicas, `r0` and up, that answer; killed at the end. `files`: settings of each."""
        for i in range(n):
            self.add(f"r{i}", files[i] if files else None).start()
        try:
            await self.clock.until(lambda: all(r.answering for r in self.all.values()), "all replicas to answer")
            yield self
        finally:
            for replica in self.all.values():
                await replica.kill()
            await cancel_and_wait(self.served)

    def add(self, name: str, settings: Settings | None = None) -> Replica:
        self.all[name] = Replica(self, name, settings or self.settings)
        return self.all[name]

    def next_life(self) -> int:
        self._lives += 1
        return self._lives

    async def ensure(self) -> None:
        """The resources are always there."""

    # What the load does

    def hint(self, hint: Hint) -> None:
        """The server publishes an ack metric or advisory: it arrives wherever it is subscribed to."""
        for replica in self.all.values():
            if replica.alive and replica.subscribed.gets(hint):
                replica.link.carry(partial(replica.clock.when_running, partial(replica.hints.take, hint)))

    async def overload(self) -> None:
        """An overload begins, and is published."""
        self.overloads += 1
        self.js.publish(KEY.stream, SUBJECT, OVERLOAD)
        await self.published("warning")

    async def calm(self) -> None:
        """It is over, and that is published."""
        self.work()
        await self.published("inactive")

    def work(self) -> None:
        """The consumer takes and acknowledges all that waits."""
        while given := self.js.pull(KEY, 1000):
            self.js.ack(KEY, *given)

    async def published(self, status: str, seconds: float = 60.0) -> None:
        """Let time pass until the stored status is this, and the events lead to it."""

        def is_published() -> bool:
            state, events = self.state(), self.events()
            return bool(state and state["status"] == status and not state_problems(events, state))

        await self.clock.until(is_published, f"{status} to be published", seconds)

    # What happens to the server

    def backup(self) -> dict[str, Any]:
        """The stores as they are now."""
        store = {"values": self.store.values, "_revision": self.store._revision}
        return copy.deepcopy({"store": store, "events": self.publisher.events})

    def restore(self, backup: dict[str, Any]) -> None:
        """The server comes back with an older store; nothing shows that but the revisions."""
        older = copy.deepcopy(backup)
        self.store.values, self.store._revision = older["store"]["values"], older["store"]["_revision"]
        self.publisher.events[:] = older["events"]

    def recreate_bucket(self) -> None:
        self._births["state"] += 1
        self.store.recreate()

    def recreate_events(self) -> None:
        self._births["events"] += 1
        self.publisher.recreate()

    def own_streams(self) -> tuple[StreamLook, ...]:
        """Our own streams, as the list of streams shows them."""
        bucket, policies = f"KV_{self.names.state_bucket}", f"KV_{self.names.policy_bucket}"
        last, n = self.store._revision, len(self.publisher.events)
        return (
            StreamLook(bucket, f"born {self._births['state']}", 1, last, len(self.store.values)),
            StreamLook(self.names.events_stream, f"born {self._births['events']}", 1, n, n),
            StreamLook(policies, "born 1", 1, 0, 0),
        )

    # What is to be seen

    def events(self) -> list[dict[str, Any]]:
        """The events of the subject as they are on the wire."""
        events = (serialize.event_message(event, "") for event in self.publisher.events if event.subject == SUBJECT)
        return [msgspec.to_builtins(event) for event in events]

    def state(self) -> dict[str, Any] | None:
        """What is stored; None where there is no key, or nothing that can be read."""
        value, _ = self.store.values.get(SUBJECT, (b"", 0))
        try:
            state: dict[str, Any] = json.loads(value)
        except ValueError:
            return None
        return state

    def problems(self) -> list[str]:
        """Where bucket, events and the answers of those that answer disagree now."""
        state, events = self.state(), self.events()
        if state is None:
            return ["nothing is stored"]
        answers = {name: replica.answer() for name, replica in self.all.items() if replica.answering}
        return [*state_problems(events, state), *answer_problems(state, answers)]

    async def agree(self, seconds: float = AGREE_WITHIN) -> None:
        """Bucket, events and all answers agree within this time."""
        await self.clock.run(seconds)
        assert not (problems := self.problems()), "\n".join([*problems, shown(self.events())])

    def check(self) -> None:
        """The events are right, none has the id of one that a store has forgotten, and there are as many incidents as
        overloads; all of them must be over."""
        events = self.events()
        tries = [event_problems(events, self.overloads + n) for n in range(self.unsure + 1)]
        problems = min(tries, key=len)
        if again := {event["id"] for event in events} & self.forgotten:
            problems.append(f"ids of forgotten events were given again: {sorted(again)}")
        assert not problems, "\n".join([*problems, shown(events)])
