"""Subscribes to the reports of gateways. Reports are hints: none is answered, some are lost, any may be forged.

They come from outside, so they use the connection for requests, never the one that observes.
"""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg

from nats_backpressure.protocol import reports
from nats_backpressure.protocol.reports import BadReport, GatewayReport
from nats_backpressure.protocol.subjects import BadTail
from nats_backpressure.runtime.ports import Clock

PENDING_MESSAGES, PENDING_BYTES = 1024, 512 * 1024
"""Messages and bytes that may wait; the client drops and counts further ones."""
PER_SECOND = 1000
"""Reports read per second; further ones are counted and dropped. One per gateway and second is enough."""
MALFORMED, TOO_MANY = "report_malformed", "report_too_many"


class GatewayReportListener:
    """Passes every report to `sink`, which must be quick, must not raise, and must not store unwatched subjects;
    `count` counts reports that are dropped."""

    def __init__(
        self, prefix: str, clock: Clock, sink: Callable[[str, GatewayReport], None], count: Callable[[str], None]
    ) -> None:
        self._prefix, self._clock, self._sink, self._count = prefix, clock, sink, count
        self._second = 0
        self._read = 0

    async def listen(self, client: Client) -> None:
        """Subscribe on a new client."""
        await client.subscribe(
            reports.everywhere(self._prefix),
            cb=self._receive,
            pending_msgs_limit=PENDING_MESSAGES,
            pending_bytes_limit=PENDING_BYTES,
        )

    async def _receive(self, message: Msg) -> None:
        # No await here: a callback that waits can be cancelled, and its subscription would end silently.
        if self._over_limit():
            self._count(TOO_MANY)
            return
        try:
            subject, report = reports.about(self._prefix, message.subject), reports.parse(message.data)
        except (BadReport, BadTail):
            self._count(MALFORMED)
            return
        self._sink(subject, report)

    def _over_limit(self) -> bool:
        """Whether PER_SECOND reports were read in this second."""
        second = int(self._clock.now().mono)
        if second != self._second:
            self._second, self._read = second, 0
        self._read += 1
        return self._read > PER_SECOND
