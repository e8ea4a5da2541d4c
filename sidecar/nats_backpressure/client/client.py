"""The client: one per connection, for gateways and consumers alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from nats_backpressure.client.admission import CRITICAL, NORMAL, RANKS
from nats_backpressure.client.events import Event, EventDeduplicator
from nats_backpressure.client.gate import Admission, Gate
from nats_backpressure.client.requests import TIMEOUT, RequestSender, Role
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.state_watch import StateWatch
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.client.values import Decision
from nats_backpressure.protocol.subjects import Names, encode

MOST_GATES = 10_000
"""Subjects asked about whose answers are kept; the one kept longest makes room, and is worked out anew if asked."""
READY_WITHIN = 5.0
"""Seconds `watch` waits by default for the first snapshot."""
REPORT_EVERY = 1.0
"""Seconds between reports of what was offered and admitted."""
CLOSE_WITHIN = 1.0


class BackpressureClient:
    """Asks the sidecar (`decide`), or follows it and answers alone (`watch`, then `admit`). Not thread-safe.

    `nc` stays the caller's: it may be connected later, reconnect, or be used for anything else.
    """

    def __init__(
        self,
        nc: Client,
        *,
        name: str = "backpressure",
        api_prefix: str = "$JS.API",
        report_every: float | None = REPORT_EVERY,
        on_count: Callable[[str, str], None] | None = None,
    ) -> None:
        self.stats = Stats(on_count=on_count)
        self.voice = OnceLogger()
        self._nc, self._names, self._report_every = nc, Names(name), report_every
        self._picture = StateMirror()
        self._gates: dict[str, Gate] = {}
        self._asker = RequestSender(nc, self._names, self.stats, self.voice)
        self._watch = StateWatch(nc, self._names, api_prefix, self._picture, self.stats, self.voice)
        self._tasks: list[asyncio.Task[None]] = []
        self._subscriptions: list[Subscription] = []

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
        priority: str = NORMAL,
        max_messages: int = 100,
        stream: str | None = None,
        consumer: str | None = None,
        timeout: float = TIMEOUT,
    ) -> Decision:
        """Ask the sidecar. A gateway's answer is reused while it is valid, a consumer's grant never.

        Without an answer within `timeout` seconds the decision is to continue, and `failed_open` says why; while an
        outage lasts the next ones do not wait at all. Never raises for what the world does.
        """
        if role == "consumer":
            return await self._asker.decide(
                subject, role, {"max_messages": max_messages, "stream": stream, "consumer": consumer}, timeout
            )
        return await self._asker.decide(subject, role, {"attempt": attempt, "priority": priority}, timeout)

    async def watch(self, subjects: Iterable[str] = (">",), *, timeout: float = READY_WITHIN) -> bool:
        """Follow the states of these subjects (or patterns, for all they cover) from now on, besides earlier ones.

        Returns once every state was read, or False after `timeout` seconds: it goes on trying, and `admit` admits.
        Raises ValueError for more than 10,000.
        """
        if self._picture.interest.add([subjects] if isinstance(subjects, str) else subjects):
            self._watch.reopen()
        self._start()
        try:
            async with asyncio.timeout(timeout):
                await self._watch.ready.wait()
        except TimeoutError:
            return False
        return True

    def admit(self, subject: str | None, priority: str = NORMAL) -> Admission:
        """Whether to let one request through, decided here and now, without I/O. Every call counts as a request.

        `priority` is `low`, `normal`, `high` or `critical`; the low ones are shed first, `critical` never.
        """
        gate = self._gates.get(subject)  # type: ignore[arg-type]  # None was never put in
        now = time.monotonic()
        if gate is None or gate.version != self._picture.version or now >= gate.until:
            gate = self._worked_out(subject, now)
        gate.offered += 1
        stats, admitted = self.stats, gate.plain or self._weighed(gate, priority)
        if admitted:
            gate.admitted += 1
            stats.admitted += 1
        else:
            stats.shed += 1
        if stats.on_count is not None:
            stats.tell("admitted" if admitted else "shed", gate.subject)
        return gate.yes if admitted else gate.no

    async def on_event(self, hand_on: Callable[[Event], None], subject: str | None = None) -> None:
        """Call a function with each event (of one subject) as it happens, once; for dashboards and logs."""
        once = EventDeduplicator(hand_on, self.stats, self.voice)

        async def heard(message: Msg) -> None:
            once.hear(message.data)

        tail = ">" if subject is None else f"*.{encode(subject)}"
        self._subscriptions.append(await self._nc.subscribe(f"{self._names.prefix}.event.{tail}", cb=heard))

    async def close(self) -> None:
        """Stop following and asking; `admit` goes on with what it knows, as it ages."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self._asker.cancel()
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            with suppress(Exception):  # of a connection that is gone already, say
                async with asyncio.timeout(CLOSE_WITHIN):
                    await subscription.unsubscribe()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_WITHIN)

    def _start(self) -> None:
        if self._tasks:
            return
        self._tasks.append(asyncio.create_task(self._watch.run(), name="backpressure watch"))
        if self._report_every is not None:
            self._tasks.append(asyncio.create_task(self._report(self._report_every), name="backpressure reports"))

    def _worked_out(self, subject: str | None, now: float) -> Gate:
        """The gate of a subject as it stands now."""
        if not subject:
            return Gate("")
        gate = self._gates.get(subject)
        if gate is None:
            if len(self._gates) >= MOST_GATES:
                self._gates.pop(next(iter(self._gates))).hand_over()
            gate = self._gates[subject] = Gate(subject)
        self._picture.refresh(gate, now)
        return gate

    def _weighed(self, gate: Gate, priority: str) -> bool:
        """Whether a request is admitted that is not simply admitted."""
        if gate.decides is None:
            self._unwatched(gate.subject)
            return True
        if gate.ruling.action == "continue":  # a dry run
            self.stats.count("would", gate.subject)
            return True
        if priority == CRITICAL:
            return True
        if priority not in RANKS:
            self.stats.count("bad_priority", gate.subject)
            self.voice.say("bad_priority", "", f"{priority!r:.80} is no priority: treated as normal")
        return gate.decides.shedder.admit(gate.ruling.ratio, priority)

    def _unwatched(self, subject: str) -> None:
        if not subject:
            self.stats.count("no_subject")
            self.voice.say("no_subject", "admit", "a request without a subject: admitted")
            return
        self.stats.count("unwatched", subject)
        if self._watch.ready.is_set():
            hint = "" if self._picture.interest.covers(subject) else " (it was not given to watch())"
            self.voice.say("unwatched", subject, f"{subject[:200]}: watched by nobody, admitted{hint}")

    async def _report(self, every: float) -> None:
        """Tell the sidecar what was offered and admitted: it sees only what comes through."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(every)
            now = time.monotonic()
            for gate in self._gates.values():
                gate.hand_over()
            for entry in tuple(self._picture.entries.values()):
                if entry.offered and self._nc.is_connected:
                    found = {"offered": entry.offered, "admitted": entry.admitted, "seconds": round(now - last, 3)}
                    entry.offered = entry.admitted = 0
                    await self._publish(f"{self._names.prefix}.report.gateway.{encode(entry.subject)}", found)
            last = now

    async def _publish(self, subject: str, found: dict[str, float]) -> None:
        try:
            await self._nc.publish(subject, msgspec.json.encode(found))
            self.stats.count("reports")
        except Exception as error:  # whatever nats-py raises, the next report is a second away
            self.voice.say("report", "", f"what was admitted cannot be reported: {error}")
