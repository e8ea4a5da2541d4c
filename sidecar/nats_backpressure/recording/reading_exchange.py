"""ReadingExchange: what one replica reads goes to the others, and what they read comes to its poller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nats_backpressure.config.settings import Settings
from nats_backpressure.recording.broadcast_format import TOPIC
from nats_backpressure.recording.broadcast_receiver import BroadcastReceiver
from nats_backpressure.recording.broadcast_sender import BroadcastSender
from nats_backpressure.recording.broadcaster import BroadcastingObserver
from nats_backpressure.recording.hint_exchange import HintExchange
from nats_backpressure.recording.hint_observer import HintObserver
from nats_backpressure.runtime.observations import Hint, Received
from nats_backpressure.runtime.poller import Poller
from nats_backpressure.runtime.ports import Clock, HintSource, Observer, ReplicaChannel, TimeSource
from nats_backpressure.runtime.replicas import Replicas
from nats_backpressure.runtime.shared_reading import SharedReading


class ReadingExchange:
    """`observer` is the one to read with, and `shared` decides which streams are read. With `sharing.enabled: false`
    nothing is sent or received."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        observer: Observer,
        channel: ReplicaChannel,
        replicas: Replicas,
        count: Callable[[str], None],
        machine: TimeSource | None = None,
    ) -> None:
        """`machine`: see SharedReading."""
        self._replicas, self._known = replicas, frozenset[str]()
        self._poller: Poller | None = None
        self._on_taken: Callable[[Received], None] = lambda received: None
        self.shared = SharedReading(
            clock,
            replicas.id,
            settings.sharing.silence_ms / 1000,
            writes=lambda: replicas.writes(),
            listening_time=channel.listening_time,
            machine=machine,
        )
        self._sender = BroadcastSender(
            clock,
            replicas.id,
            channel,
            settings.observe.max_interval_ms / 1000,
            count,
        )
        self._receiver = BroadcastReceiver(
            clock,
            replicas.id,
            self._take,
            count,
            lambda sender: self._sender.send_whole(),
            believes=self.shared.believes,
            listening_time=channel.listening_time,
            wants=self.shared.wants,
        )
        self._enabled = replicas.shares = settings.sharing.enabled
        self.hints = HintExchange(clock, self.shared, replicas, channel, count, self._receiver.shift)
        self.observer = observer
        if self._enabled:
            self.observer = BroadcastingObserver(
                HintObserver(observer, self.hints), clock, self.shared, self._sender.add, lambda: replicas.have_sharing
            )
            channel.listen(f"{TOPIC}>", self._receiver.receive)
            replicas.on_change, replicas.on_missed = self._update, self._sender.send_whole
            replicas.on_report = self._receiver.add_report

    def connect(
        self,
        poller: Poller,
        on_taken: Callable[[Received], None] = lambda received: None,
        sink: Callable[[Hint], None] | None = None,
    ) -> None:
        """Pass on what is received to the poller; `on_taken` gets what is taken in, `sink` the hints that
        count (without it: the poller)."""
        self._poller, self._on_taken = poller, on_taken
        self.hints.connect(poller.polls, sink or poller.hint)
        self.shared.on_forget = self.hints.update

    def share_hints(self, source: HintSource) -> None:
        """Share the hints of `source` with the other replicas, too."""
        if self._enabled:
            self.hints.share(source)

    async def run(self) -> None:
        """Send and receive until cancelled."""
        if self._enabled:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._sender.run(), name="send readings")
                tasks.create_task(self._receiver.run(), name="receive readings")

    def _take(self, received: Received) -> None:
        self.hints.flush(received.stream)
        if self._poller is not None and self._poller.receive(received):
            self._on_taken(received)
        self.hints.update(received.stream)

    def _update(self) -> None:
        """A replica came or went."""
        before, self._known = self._known, frozenset(self._replicas.others)
        if self._known - before:
            self._sender.send_whole()
        if not self._replicas.have_sharing:
            self._sender.clear()
        if self._poller is not None:
            for sender in before - self._known:
                self._poller.leave(sender)
        self.hints.update_all()
