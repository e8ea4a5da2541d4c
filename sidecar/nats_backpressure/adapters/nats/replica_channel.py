"""Sends messages to the other replicas of the installation, and receives theirs: core NATS, nothing is stored."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.patched_client import PatchedClient
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.ports import Unavailable

PENDING_MESSAGES, PENDING_BYTES = 4096, 8 * 1024 * 1024
"""Messages and bytes that may wait on one subscription; the client drops and counts further ones."""
UNSENT_MESSAGES = 1024 * 1024
"""Bytes that may wait to be sent, on a link that takes nothing; further messages are dropped and counted."""
LONGEST = 64 * 1024
"""Bytes of one message, on a server that takes as many."""
ROOM = 256 * 1024
"""Bytes that may wait to be sent where what has many messages may add one."""
UNSENT, UNREAD = "replica_message_unsent", "replica_message_unread"

Receive = Callable[[str, bytes], None]


class NatsReplicaChannel:
    """The ReplicaChannel on a connection without echo; `count` counts those not sent, and foreign ones."""

    def __init__(
        self,
        names: Names,
        client: Callable[[], PatchedClient],
        listening_time: Callable[[float], float],
        count: Callable[[str], None],
    ) -> None:
        self._start, self._client, self._count = f"{names.internal}.", client, count
        self.listening_time = listening_time
        self._receivers: list[tuple[str, Receive]] = []

    def publish(self, topic: str, payload: bytes) -> bool:
        try:
            sent = self._client().write_at_once(self._start + topic, payload, most_waiting=UNSENT_MESSAGES)
        except Unavailable:
            sent = False
        if not sent:
            self._count(UNSENT)
        return sent

    def longest(self) -> int:
        try:
            return min(LONGEST, self._client().max_payload)
        except Unavailable:
            return LONGEST  # what is published now is dropped and counted

    def room(self) -> int:
        try:
            waiting = self._client().bytes_waiting
        except Unavailable:
            waiting = 0
        return self.longest() if waiting <= ROOM else 0

    def listen(self, topic: str, receive: Receive) -> None:
        self._receivers.append((topic, receive))

    async def subscribe(self, client: Client) -> None:
        """Subscribe on a new client."""
        for topic, receive in self._receivers:
            await client.subscribe(
                self._start + topic,
                cb=self._passing_to(receive),
                pending_msgs_limit=PENDING_MESSAGES,
                pending_bytes_limit=PENDING_BYTES,
            )

    def _passing_to(self, receive: Receive) -> Callable[[Msg], Coroutine[Any, Any, None]]:
        async def pass_on(message: Msg) -> None:
            # No await here: a callback that waits can be cancelled, and its subscription would end silently.
            # Who pulls from a stream can have its messages delivered here: they keep the subject they were stored on.
            if message.subject.startswith(self._start):
                receive(message.subject.removeprefix(self._start), message.data)
            else:
                self._count(UNREAD)

        return pass_on
