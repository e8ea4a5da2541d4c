"""BackpressureClient: one per connection, for gateways and consumers; it owns the watch, the requests and reports."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import PubAck

from nats_backpressure.client.event_deduplicator import EventDeduplicator, EventHandler
from nats_backpressure.client.event_subscription import EventSubscription
from nats_backpressure.client.fixed import FixedAnswers, fixed_state
from nats_backpressure.client.inbox import Inbox
from nats_backpressure.client.load_reports import LoadReports
from nats_backpressure.client.local_admission import MAX_SUBJECTS, LocalAdmission
from nats_backpressure.client.overloaded import Overloaded
from nats_backpressure.client.read_loop_guard import guard_read_loop
from nats_backpressure.client.reconnect_guard import guard_reconnect
from nats_backpressure.client.requests import TIMEOUT, Answer, RequestSender
from nats_backpressure.client.shedder import NORMAL
from nats_backpressure.client.state_watch import StateWatch
from nats_backpressure.protocol.reports import LONGEST, SHORTEST
from nats_backpressure.protocol.requests import MOST_ATTEMPTS, MOST_MESSAGES
from nats_backpressure.protocol.subjects import Names, encode
from nats_backpressure.protocol.values import ROLES, ActionName, Priority, Role

WATCH_TIMEOUT = 5.0
"""Seconds `watch` waits by default for the first snapshot."""
REPORT_INTERVAL = 1.0
"""Seconds between two reports of offered and admitted requests."""
_INSTALLATION = re.compile(r"[A-Za-z0-9_-]{1,64}")
FIRST_PAUSE, LAST_PAUSE = 0.1, 1.0
"""Seconds between two tries of a publish that waits, doubling, with jitter."""
CLOSE_TIMEOUT = 1.0
"""Seconds for each step of closing."""


class Leaves(Protocol):
    """Who asks for pulls, and can say that it asks no more."""

    async def leave(self) -> None: ...


class BackpressureClient(LocalAdmission):
    """Asks the sidecar (`decide`), or follows its states and decides without asking (`watch`, then `admit`).

    Not thread-safe: ThreadedClient is. `nc` stays the caller's: it may be connected later, reconnect, or be used for
    anything else.
    """

    def __init__(
        self,
        nc: Client,
        *,
        name: str = "backpressure",
        api_prefix: str = "$JS.API",
        report_every: float | None = REPORT_INTERVAL,
        on_count: Callable[[str, str], None] | None = None,
        max_subjects: int = MAX_SUBJECTS,
    ) -> None:
        """`name` is the sidecar's setting `name`; `report_every` is in seconds (0.05 to 60), None for no reports;
        `on_count(name, subject)` is called for each count; `max_subjects` bounds the subjects that `admit` caches.
        Raises ValueError for a name that no installation can have, and for another `report_every`."""
        if not _INSTALLATION.fullmatch(name):
            raise ValueError(f"the name {name[:120]!r} is none: letters, digits, `-` and `_` are possible")
        if report_every is not None and not SHORTEST <= report_every <= LONGEST:
            raise ValueError(
                f"report_every is {report_every:g}: {SHORTEST} to {LONGEST:g} seconds are possible, or None"
            )
        super().__init__(on_count, max_subjects)
        self.name = name
        self._nc, self._names, self._report_every = nc, Names(name), report_every
        guard_read_loop(nc, self.logger)
        guard_reconnect(nc)
        self._requests = RequestSender(nc, self._names, self.stats, self.logger)
        self._watch = StateWatch(nc, self._names, api_prefix, self._mirror, self.stats, self.logger, self._ready)
        self._reports = LoadReports(nc, self._names, self.stats, self.logger)
        self._started = self._is_fixed = False
        """Whether it follows the states, and whether it never does."""
        self._tasks: list[asyncio.Task[None]] = []
        self._events: list[EventSubscription] = []
        self._pulls: set[asyncio.Task[Any]] = set()
        """Of pull gates whose fetch was cancelled: one for each gate at most."""
        self._gates = WeakSet[Leaves]()

    @classmethod
    def fixed(
        cls, action: ActionName = "continue", *, admit_ratio: float | None = None, retry_after_seconds: int = 30
    ) -> BackpressureClient:
        """A client for the tests of an application: without a connection, it decides the same for every subject, as
        `admit` and as `decide`. `admit_ratio` is the share of `throttle`, 0.5 by default. Raises ValueError for an
        action or a ratio that there is not, and for a ratio with another action."""
        client = cls(Client(), report_every=None)
        state = fixed_state(action, admit_ratio, retry_after_seconds)
        client._mirror.fix(state)
        client._requests = answers = FixedAnswers(client._nc, client._names, client.stats, client.logger)
        answers.fix(state)
        client._is_fixed = True
        client._ready.set()
        return client

    async def __aenter__(self) -> BackpressureClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def decide(
        self,
        subject: str,
        role: Role = "gateway",
        *,
        attempt: int = 1,
        priority: Priority = NORMAL,
        max_messages: int = 100,
        stream: str | None = None,
        consumer: str | None = None,
        unused: int = 0,
        held: int | None = None,
        lost: int = 0,
        ahead: int = 0,
        leaving: bool = False,
        due: list[dict[str, int]] | None = None,
        earlier: list[dict[str, int]] | None = None,
        inbox: Inbox | None = None,
        timeout: float = TIMEOUT,
    ) -> Answer:
        """Ask the sidecar. A gateway's answer is reused while it is valid, a consumer's grant never.

        An unknown priority counts as `normal`, an `attempt` below 1 as 1, and `max_messages` beyond what the sidecar
        grants at once (10,000) as that. `unused` are messages of the last grant that are given back, `held` those that
        were pulled and are not acknowledged (`ahead` of which are before the next pull), `lost` those that will not
        be; `due` says when these come back, and `earlier` when those of earlier questions do, as in the protocol. Who
        reports them asks from an inbox of its own, and says with `leaving` that it asks no more: nothing is granted
        then. Raises ValueError for another role, or another number of messages than a whole one from 1.

        Without an answer within `timeout` seconds the decision is to continue, and `failed_open` says why; during an
        outage the next ones do not wait at all. Raises nothing for a failure of NATS or of the sidecar.
        """
        if role not in ROLES:
            raise ValueError(f"the role {role!r} is none of {', '.join(ROLES)}")
        if role == "consumer":
            if not isinstance(max_messages, int) or max_messages < 1:
                raise ValueError(f"max_messages must be a whole number from 1, not {max_messages!r}")
            max_messages = min(int(max_messages), MOST_MESSAGES)
            pull: dict[str, Any] = {"max_messages": max_messages, "stream": stream, "consumer": consumer}
            pull |= {"unused": unused, "held": held, "lost": lost, "ahead": ahead} | (
                {"leaving": True} if leaving else {}
            )
            pull |= {} if due is None else {"due": due, "earlier": earlier or []}
            return await self._requests.decide(subject, role, pull, timeout, inbox)
        fields = {"attempt": max(1, min(attempt, MOST_ATTEMPTS)), "priority": self._known(priority, subject)}
        return await self._requests.decide(subject, role, fields, timeout)

    async def watch(self, subjects: Iterable[str] = (">",), *, timeout: float = WATCH_TIMEOUT) -> bool:
        """Follow the states of these subjects (or patterns, for all they cover) from now on, besides earlier ones.

        Returns True once every state was read, False after `timeout` seconds: it then goes on trying, and `admit`
        admits. Raises ValueError for what is no subject, and for more than 10,000.
        """
        if self._mirror.filter.add([subjects] if isinstance(subjects, str) else subjects):
            self._watch.restart()
        self._start()
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True

    async def publish(
        self,
        js: JetStreamContext,
        subject: str,
        payload: bytes = b"",
        *,
        priority: Priority = NORMAL,
        wait: float = 0.0,
        **options: Any,
    ) -> PubAck:
        """Publish to a stream that others drain, unless its consumers are overloaded: for a worker in a chain.
        `options` are those of `js.publish`: `timeout`, `stream`, `headers` and the like.

        Where `admit` refuses, it tries again for up to `wait` seconds, and then raises Overloaded; every try counts
        as a request. Raises what `js.publish` raises.
        """
        deadline, pause = time.monotonic() + wait, FIRST_PAUSE
        while not (admission := self.admit(subject, priority)):
            if (left := deadline - time.monotonic()) <= 0:
                raise Overloaded(subject, admission)
            await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, LAST_PAUSE)
        return await js.publish(subject, payload, **options)

    async def on_event(self, handler: EventHandler, subject: str | None = None) -> None:
        """Call `handler` once with each event (of one subject) as it happens; for dashboards and logs. It may be a
        coroutine function, and is awaited before the next event. Before the connection is made it waits for that."""
        events = EventDeduplicator(handler, self.stats, self.logger)

        async def receive(message: Msg) -> None:
            # Who pulls from a stream can have its messages delivered here: they keep the subject they were stored on.
            await events.receive(message.data if message.subject.startswith(f"{self._names.prefix}.event.") else b"")

        tail = ">" if subject is None else f"*.{encode(subject)}"
        subscription = EventSubscription(self._nc, f"{self._names.prefix}.event.{tail}", receive)
        await subscription.start()
        self._events.append(subscription)
        self._tasks.append(asyncio.create_task(subscription.run(), name="backpressure events"))

    def cancel_at_close(self, pull: asyncio.Task[Any]) -> None:
        """For a task that nobody waits for: `close` cancels it, if it goes on until then."""
        self._pulls.add(pull)
        pull.add_done_callback(self._pulls.discard)

    def leave_at_close(self, gate: Leaves) -> None:
        """For one that asks for pulls: `close` has it leave, if it is in use until then."""
        self._gates.add(gate)

    async def close(self) -> None:
        """Stop following and asking; `admit` goes on with the states it has, as they age."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*(gate.leave() for gate in tuple(self._gates)), return_exceptions=True)
        tasks, self._tasks, self._started = [*self._tasks, *self._pulls], [], False
        for task in tasks:
            task.cancel()
        self._requests.cancel()
        subscriptions, self._events = self._events, []
        for subscription in subscriptions:
            with suppress(Exception):  # the connection may be gone already
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await subscription.close()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)

    def _start(self) -> None:
        if self._started or self._is_fixed:
            return
        self._started = self._follows = True
        self._tasks.append(asyncio.create_task(self._watch.run(), name="backpressure watch"))
        if self._report_every is not None:
            reports = self._reports.run(self._report_every, self._cached, self._mirror)
            self._tasks.append(asyncio.create_task(reports, name="backpressure reports"))
