"""Replicas: which other replicas of the installation run now. Each of them reports its presence once a second."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from typing import Final
from zlib import crc32

import msgspec
import structlog
from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.core.admission.grant_shares import ALONE, Share
from nats_backpressure.core.watch_filter import WatchEntry, is_name_watched
from nats_backpressure.protocol.between_replicas import ALL_UNREAD, PRESENCE, SCHEMA, Presence, Watched, read
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.ports import Clock, ReplicaChannel, ServiceCounts
from nats_backpressure.runtime.tasks import Bounded, Once

log = structlog.get_logger()

SAME_INSTANCE: Final = "this is another process with our own `instance`: give each a name of its own there"

EVERY = 1.0
"""Seconds between two reports of our own presence."""
PRESENT_FOR = 3.0
"""Seconds without a report after which a replica is gone; only the time counts in which one would have come here."""
ANSWERS_APART = 0.05
"""Seconds between two reports at least: a replica that is new gets one at once."""
FIRST_ANSWERS = 1.0
"""Seconds after the start within which the replicas that run have surely answered."""
FIRST_HEARD = 0.25
"""Seconds after the start within which those that run answer, as far as grants go: ANSWERS_APART and two messages, on a
busy machine. It takes longer until a sidecar that starts is asked at all."""
MOST_REPLICAS = 256
"""Replicas that are known at most; beyond, the one that reported least recently is dropped."""


class NoReplicas:
    """The ReplicaChannel of a service that has no other replicas."""

    def publish(self, topic: str, payload: bytes) -> bool:
        return True

    def longest(self) -> int:
        return 0

    def room(self) -> int:
        return 0

    def listen(self, topic: str, receive: Callable[[str, bytes], None]) -> None:
        pass

    def listening_time(self, since: float) -> float:
        return math.inf


class Replica(Struct, frozen=True):
    """Another replica, as it reported itself."""

    presence: Presence
    received_at: float
    """Monotonic."""


class Replicas:
    """The other replicas. `on_change` is called whenever one comes, goes, or reports something new."""

    def __init__(self, channel: ReplicaChannel, clock: Clock, instance: str, id_: str, counts: ServiceCounts) -> None:
        self.id, self.instance = id_, instance
        self.policies = ""
        self.writes: Callable[[], bool] = lambda: True
        """Whether what this replica writes and publishes arrives."""
        self.unread: Callable[[], tuple[str, ...]] = tuple
        """The watched streams that this replica can neither read nor receive, see `Presence.unread`."""
        self.watch: tuple[Watched, ...] = ()
        """What this replica watches, as it is reported; empty where that is too long."""
        self.shares = True
        """Whether this replica uses the readings of others."""
        self.have_sharing, self.all_share = False, True
        """Whether one of the others uses readings of others, and whether all of them do."""
        self.hints: Callable[[], bool] = lambda: False
        """Whether this replica shares the ack metrics and advisories of the streams that it reads."""
        self.on_report: Callable[[str, float], None] = lambda id_, sent: None
        """Called with the id of each other one that reports its presence, and the time of its own clock."""
        self.on_missed: Callable[[], None] = lambda: None
        """Called when one of the others, which was known before, did not receive what was sent to it."""
        self.others: Bounded[str, Replica] = Bounded(MOST_REPLICAS)
        """By id; only `update` and messages change it."""
        self.departed: Bounded[str, None] = Bounded(MOST_REPLICAS)
        """Names of the instances that reported that they stop."""
        self.on_change: Callable[[], None] = lambda: None
        self._channel, self._clock, self._counts = channel, clock, counts
        self._started_at, self._early, self._leaving = clock.now().mono, True, False
        self._heard_since, self._heard_first = self._started_at, False
        self._due, self._wrote, self._missed = asyncio.Event(), True, False
        self._share, self._marks = ALONE, frozenset[str]()
        self._sharing_differs, self._watch_differs = Once(), False
        channel.listen(PRESENCE, self._receive)

    async def run(self) -> None:
        """Report our presence, until cancelled."""
        while True:
            self._due.clear()
            self.publish()
            self.update()
            soonest = self._clock.mono() + ANSWERS_APART
            await self._clock.wait(self._due, EVERY)
            if (early := soonest - self._clock.mono()) > 0:
                await self._clock.sleep(early)

    def set_policies(self, mark: str) -> None:
        """The policies of the settings file have this mark now."""
        if mark != self.policies:
            self.policies = mark
            self._due.set()

    def announce(self) -> None:
        """A connection was made: report our presence soon, so that the others answer."""
        self._missed, self._heard_since = True, self._clock.now().mono
        self._due.set()

    def announce_change(self) -> None:
        """Report our presence soon if what this replica writes arrives no more, or again; to be called often."""
        if self.writes() != self._wrote:
            self._due.set()

    def leave(self) -> None:
        """Report that this replica stops."""
        self._leaving = True
        self.publish()

    def publish(self) -> None:
        """Report our presence now."""
        self._wrote = self.writes()
        ours = Presence(
            SCHEMA,
            self.id,
            self.instance,
            self.policies,
            self._wrote,
            self._leaving,
            shares=self.shares,
            hints=self.hints(),
            unread=self.unread(),
            watch=self.watch,
            missed=self._missed,
            sent=self._clock.now().mono,
        )
        message = msgspec.json.encode(ours)
        if len(message) > self._channel.longest():
            message = msgspec.json.encode(replace(ours, unread=ours.unread and ALL_UNREAD, watch=()))
        if self._channel.publish(PRESENCE, message):
            self._missed = False

    def update(self) -> None:
        """Drop those that are gone."""
        gone = [id_ for id_, one in self.others.items() if self._silence(one.received_at) > PRESENT_FOR]
        for id_ in gone:
            log.info("replica.gone", instance=self.others.pop(id_).presence.instance, because="no report")
        if gone:
            self._changed()

    def share(self, consumer: str) -> Share:
        """Our share of what may be granted of a consumer while no replica knows yet what the others grant."""
        if not self.others and self._is_alone():
            return ALONE
        count = self._share.replicas
        return Share(count, (self._share.rank + crc32(consumer.encode())) % count, self.id, self._heard_since)

    def _is_alone(self) -> bool:
        """Whether any other would have answered since our start."""
        self._heard_first = self._heard_first or self._channel.listening_time(self._started_at) >= FIRST_HEARD
        return self._heard_first

    def marks(self) -> frozenset[str] | None:
        """The marks of the policies of the others that can write; None while it is too early to know."""
        if self._early and self._channel.listening_time(self._started_at) < FIRST_ANSWERS:
            return None
        self._early = False
        return self._marks

    def marks_that_lack(self, consumers: Collection[ConsumerKey]) -> frozenset[str]:
        """The marks of the policies of those that can write and do not watch one of these consumers, by its name, where
        that is so of all with this mark."""
        if not self._watch_differs:
            return frozenset()
        able = [one.presence for one in self.others.values() if one.presence.writes]
        all_ = frozenset(one.policies for one in able if one.watch == self.watch or not _lacks(one.watch, consumers))
        return frozenset(one.policies for one in able) - all_

    def _silence(self, since: float) -> float:
        return self._channel.listening_time(since)

    def _receive(self, topic: str, payload: bytes) -> None:
        presence = read(payload, Presence)
        if presence is None:
            self._counts.dropped("replica_message_unread")
            return
        if presence.id == self.id:
            return
        self.on_report(presence.id, presence.sent)
        missed, before = presence.missed, self.others.pop(presence.id, None)
        presence = replace(presence, sent=0.0, missed=False)
        if presence.leaving:
            self.departed[presence.instance] = None
        else:
            self.departed.pop(presence.instance, None)
            self.others[presence.id] = Replica(presence, self._clock.now().mono)
        if before is not None and missed:
            self.on_missed()
        if before is None and not presence.leaving:
            same = {"hint": SAME_INSTANCE} if presence.instance == self.instance else {}
            log.info("replica.present", instance=presence.instance, policies=presence.policies, **same)
            self._due.set()
        elif before is not None and presence.leaving:
            log.info("replica.gone", instance=presence.instance, because="it stops")
        if (before.presence if before else None) != (None if presence.leaving else presence):
            self._changed()

    def _changed(self) -> None:
        ids = sorted([self.id, *self.others])
        self._share = Share(len(ids), ids.index(self.id))
        presences = [one.presence for one in self.others.values()]
        self._watch_differs = any(presence.watch not in ((), self.watch) for presence in presences)
        self.have_sharing = any(presence.shares for presence in presences)
        self.all_share = all(presence.shares for presence in presences)
        self._marks = frozenset(presence.policies for presence in presences if presence.writes)
        self._report_sharing(presences)
        self.on_change()

    def _report_sharing(self, presences: Sequence[Presence]) -> None:
        """Log once that some share what they read and some do not, as long as that is so."""
        differing = [presence.instance for presence in presences if presence.shares != self.shares]
        if not differing:
            self._sharing_differs.forget()
        elif self._sharing_differs.first():
            log.warning(
                "sharing.differs",
                shares=self.shares,
                other=differing[0],
                cost="each replica with `sharing.enabled: false` reads every stream for itself, beside the others and "
                "with a limit of requests of its own; what is stored and answered stays right",
                hint="set `sharing.enabled` alike on all replicas",
            )


def _lacks(watch: Sequence[Watched], consumers: Collection[ConsumerKey]) -> bool:
    """Whether what a replica watches is known, and is not all of these consumers."""
    entries = [WatchEntry(one.stream, one.consumers) for one in watch]
    return bool(entries) and not all(is_name_watched(key, entries, ()) for key in consumers)
