"""SharedGrants: counts what other replicas grant, and sends them what this one grants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.protocol.between_replicas import (
    GRANTS,
    MOST_GRANTS,
    Grants,
    SharedGrant,
    grants_messages,
    read,
)
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.queries.pulls import PullGrants
from nats_backpressure.runtime.ports import ReplicaChannel, ServiceCounts, TimeSource
from nats_backpressure.runtime.replicas import Replicas


class SharedGrants:
    """What is granted within one turn of the event loop goes out together, right after it. `reading_of` returns the
    newest reading of a member, None for any other consumer."""

    def __init__(
        self,
        pulls: PullGrants,
        replicas: Replicas,
        channel: ReplicaChannel,
        clock: TimeSource,
        counts: ServiceCounts,
        reading_of: Callable[[ConsumerKey], Reading | None],
    ) -> None:
        self._pulls, self._replicas, self._channel = pulls, replicas, channel
        self._clock, self._counts, self._reading_of = clock, counts, reading_of
        self._unsent: list[SharedGrant] = []
        """Until the end of this turn; MOST_GRANTS at most."""
        pulls.share, pulls.on_grant = replicas.share, self._add
        channel.listen(GRANTS, self._receive)

    def _add(self, key: ConsumerKey, n: int, asked: Asked) -> None:
        if not self._replicas.others:
            return
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._send)
        held = asked.held_beside(n)
        grant = SharedGrant(key.stream, key.consumer, n, asked.requester, held, asked.n, asked.lost)
        if asked.due is not None:
            grant = replace(grant, due=asked.due, earlier=asked.earlier)
        self._unsent.append(replace(grant, leaving=True, unused=asked.unused) if asked.leaving else grant)
        if len(self._unsent) == MOST_GRANTS:
            self._send()

    def _send(self) -> None:
        unsent, self._unsent = tuple(self._unsent), []
        for message in grants_messages(self._replicas.id, unsent, self._channel.longest()) if unsent else ():
            self._channel.publish(GRANTS, message)

    def _receive(self, topic: str, payload: bytes) -> None:
        message = read(payload, Grants)
        if message is None:
            self._counts.dropped("replica_message_unread")
            return
        if message.id == self._replicas.id:
            return
        now = self._clock.now().mono
        for grant in message.grants:
            if (reading := self._reading_of(ConsumerKey(grant.stream, grant.consumer))) is not None:
                self._pulls.add_foreign(message.id, grant, reading, now)
