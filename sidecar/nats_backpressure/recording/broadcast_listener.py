"""BroadcastListener: records what replicas send each other about what they read, without being one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nats_backpressure.core.reading.sharing import ALL_STREAMS
from nats_backpressure.recording.broadcast_format import TOPIC
from nats_backpressure.recording.broadcast_receiver import BroadcastReceiver
from nats_backpressure.recording.hint_messages import TOPIC as HINTS
from nats_backpressure.recording.hint_receiver import HintReceiver
from nats_backpressure.recording.recorder import Recorder
from nats_backpressure.runtime.observations import Received
from nats_backpressure.runtime.ports import Clock, ReplicaChannel
from nats_backpressure.runtime.shared_reading import SharedReading
from nats_backpressure.runtime.tasks import cancel_and_wait, sleep_until

SILENT_FOR = 10.0
"""Seconds without any reading after which that is reported, once until the next one: twice as long as the longest
interval between two messages that a newcomer understands."""
LOOK_EVERY = 0.5
"""Seconds between two checks of that, and of the file."""


class BroadcastListener:
    """It publishes nothing. `on_silence` is called after SILENT_FOR without a reading."""

    def __init__(
        self, clock: Clock, channel: ReplicaChannel, recorder: Recorder, on_silence: Callable[[], None]
    ) -> None:
        self._clock, self._recorder, self._on_silence = clock, recorder, on_silence
        self._turns = SharedReading(clock, "", 0.0, listening_time=channel.listening_time)
        self._receiver = BroadcastReceiver(
            clock,
            "",
            self._take,
            lambda what: None,
            believes=self._turns.believes,
            listening_time=channel.listening_time,
        )
        channel.listen(f"{TOPIC}>", self._receiver.receive)
        hints = HintReceiver(
            clock,
            "",
            recorder.recording_hints(lambda hint: None),
            lambda what: None,
            shift=self._receiver.shift,
            wants=lambda stream, sender, source: self._turns.believes(),
        )
        channel.listen(f"{HINTS}>", hints.receive)
        self.readings = 0
        self.newest: dict[str, float] = {}
        """When the newest recorded reading of each stream was answered."""
        self._began_at = self._received_at = clock.now().mono
        self.complete_after = 0.0
        """Seconds after the start at which the newest stream was first recorded: nothing is asked for, and only a
        message that shows all of a stream can be understood alone."""

    async def run(self, stop: asyncio.Event) -> None:
        """Record until `stop`, or until nothing can be written any more; then close the file."""
        receiving = asyncio.create_task(self._receiver.run(), name="receive readings")
        reported = False
        try:
            while not self._recorder.failed and not await sleep_until(stop, self._clock, LOOK_EVERY):
                self._turns.pulse()
                self._recorder.flush()
                silent = self._clock.now().mono - self._received_at >= SILENT_FOR
                if silent and not reported:
                    self._on_silence()
                reported = silent
        finally:
            await cancel_and_wait([receiving])
            self._recorder.close()

    def _take(self, received: Received) -> None:
        """Where two replicas read a stream for a moment, what is older is left out: time in a recording only grows."""
        self._received_at = self._clock.now().mono
        if received.sent_at < self.newest.get(received.stream, received.sent_at):
            return
        if received.stream != ALL_STREAMS:
            self.readings += 1
            if received.stream not in self.newest:
                self.complete_after = self._received_at - self._began_at
            self.newest[received.stream] = received.sent_at
        self._recorder.record_received(received)
