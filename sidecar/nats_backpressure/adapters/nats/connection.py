"""Keeps one NATS connection: after any loss it opens a new client instead of letting nats-py reconnect.

nats-py can look connected while its reader is dead, and closes permanently on several server errors. So its own
reconnect is off: a lost link, a close, a lame duck or a failed round trip all lead to one path, a whole new client with
fresh credentials, on which every subscription is made again."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import structlog
from nats.aio.msg import Msg

from nats_backpressure.adapters.nats.credentials import explain
from nats_backpressure.adapters.nats.denial_log import DenialLog
from nats_backpressure.adapters.nats.denied_rights import denial
from nats_backpressure.adapters.nats.login import REFUSES_LOGIN, WANTS_LOGIN, describe_login, login_hint
from nats_backpressure.adapters.nats.patched_client import PatchedClient, discard
from nats_backpressure.config.nats import Nats
from nats_backpressure.runtime.failures import NOT_CONNECTED
from nats_backpressure.runtime.ports import Clock, Unavailable
from nats_backpressure.runtime.tasks import OnceIn, backoff, raise_if_cancelled, sleep_until

log = structlog.get_logger()

FIRST_RETRY, LAST_RETRY = 0.1, 5.0
"""Seconds before the next client, doubling with jitter; a client that lived for LAST_RETRY resets them."""
LAST_UNREACHED = 1.0
"""The longest such pause where no server answered at all: then a try costs none of them anything, and after a restart
of the server all replicas are back within a second, each at a moment of its own."""
CONNECT_TIMEOUT = 2.0
"""Seconds for connecting to one server."""
PROBE_EVERY = PROBE_TIMEOUT = 2.0
"""Seconds between round trips, and for one of them; two that fail in a row end the client."""
NO_PINGS = 86_400
"""Seconds between two PINGs of nats-py itself: those of this supervisor are enough."""
MEASURE_EVERY, MEASURED = 10.0, 3
"""Seconds between two PINGs that measure the link, and how many of them count: the quickest does, since a busy process
or server makes the others longer."""
SET_UP_WITHIN = 15.0
"""Seconds for connecting and for all subscriptions."""
FIRST_DENIED, LAST_DENIED = 5.0, 300.0
"""Seconds before refused subscriptions are tried again on the same client, doubling: the server does not report that a
right was given."""
UNREACHABLE_AGAIN = 300.0
"""Seconds after which the same reason for no connection is logged again."""
LOG_EVERY = 60.0
"""Seconds between two warnings of the same kind; nats-py reports a slow consumer once per message."""


class Connection:
    """One supervised connection; `client` is the present one, `epoch` rises by one with each."""

    def __init__(
        self,
        name: str,
        nats: Nats,
        clock: Clock,
        *,
        set_up: Callable[[PatchedClient], Awaitable[None]],
        count: Callable[[str], None],
        on_rebuild: Callable[[], None],
        may_publish: Callable[[str], bool] | None = None,
        echo: bool = True,
        probe_every: float = PROBE_EVERY,
        probe_timeout: float = PROBE_TIMEOUT,
        denied_again: float = FIRST_DENIED,
    ) -> None:
        """`set_up` subscribes on each new client, `count` counts errors by kind, `on_rebuild` runs after each loss.
        Without `echo`, subscriptions do not receive what this connection publishes."""
        self.name, self.epoch = name, 0
        self._nats, self._clock = nats, clock
        self._set_up, self._count, self._on_rebuild = set_up, count, on_rebuild
        self._may_publish, self._echo = may_publish, echo
        self._probe_every, self._probe_timeout = probe_every, probe_timeout
        self._first_denied = denied_again
        self._client: PatchedClient | None = None
        self._connected_at = self._answered_at = -math.inf
        """Monotonic times: when the present client was set up (infinite until it is), and when the last PING that was
        answered was sent."""
        self._round_trips: deque[float] = deque(maxlen=MEASURED)
        self._measured_at = -math.inf
        self._unreachable = OnceIn(UNREACHABLE_AGAIN)
        self._reached = False
        """Whether a server answered the last client."""
        self._logged: dict[str, float] = {}
        """When each kind of error was last logged as a warning."""
        self._denials = DenialLog(name, nats)

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> PatchedClient:
        """The present client. Raises Unavailable while there is none."""
        if self._client is None or not self._client.is_connected:
            raise Unavailable(NOT_CONNECTED)
        return self._client

    @property
    def round_trip(self) -> float:
        """Seconds that a PING takes there and back; 0 before MEASURED of them: the first ones meet a busy process."""
        return min(self._round_trips) if len(self._round_trips) == MEASURED else 0.0

    def listening_time(self, since: float) -> float:
        """For how many seconds after a monotonic moment all that was sent to our subscriptions has surely come."""
        if self._client is None or not self._client.is_connected:
            return 0.0
        proved_at = max(self._answered_at, self._client.requests.proved_at)
        return max(0.0, proved_at - max(since, self._connected_at))

    async def run(self) -> None:
        """Always have one client, until cancelled."""
        delays, unreached = self._delays()
        while True:
            raise_if_cancelled()
            started = self._clock.mono()
            if await self._live() and self._clock.mono() - started >= LAST_RETRY:
                delays, unreached = self._delays()
            # Also after a client that did connect: what ended it may end the next one at once.
            await self._clock.sleep(next(delays if self._reached else unreached))

    def _delays(self) -> tuple[Iterator[float], Iterator[float]]:
        """The pauses after clients that a server answered, and after others."""
        answered, unreached = (backoff(self._clock, FIRST_RETRY, last) for last in (LAST_RETRY, LAST_UNREACHED))
        return answered, unreached

    async def _live(self) -> bool:
        """The whole life of one client; returns whether it connected."""
        client = await self._build()
        if client is None:
            return False
        try:
            await self._watch(client)
        finally:
            self._client = None
            await discard(client)
        # What is denied does not end a connection.
        because = client.because if denial(client.because) is None else ""
        log.warning("nats.lost", connection=self.name, because=because or "closed")
        self._on_rebuild()
        return True

    async def _build(self) -> PatchedClient | None:
        """A client that is connected and set up. None is logged: again for another reason, and while it lasts."""
        client = PatchedClient(self._may_publish, self._note)
        try:
            async with asyncio.timeout(SET_UP_WITHIN):
                more = {"ping_interval": NO_PINGS, "lame_duck_mode_cb": client.on_end, "no_echo": not self._echo}
                await client.open(self._nats, self.name, CONNECT_TIMEOUT, **more)
                self._client, self._connected_at = client, math.inf  # nothing counts before all is subscribed to
                self.epoch += 1
                await self._set_up(client)
                self._connected_at = self._clock.mono()
        except BaseException as error:  # after any error comes another client; a cancellation leaves none behind
            self._client, self._reached = None, client.was_answered
            await discard(client)
            if not isinstance(error, Exception):
                raise
            raise_if_cancelled()
            self._report_unreachable(client, error)
            return None
        self._reached = True
        self._unreachable.forget("")
        log.info("nats.connected", connection=self.name, epoch=self.epoch)
        return client

    def _report_unreachable(self, client: PatchedClient, error: BaseException) -> None:
        text = (client.because or explain(error)).removeprefix("nats: ").strip("'")
        hint = login_hint(self._nats, text, client._server_info)
        # Who is refused reads the reason, or only that the connection was reset.
        cause = hint if hint in (WANTS_LOGIN, REFUSES_LOGIN) else text
        if self._unreachable.first(self._clock.mono(), "", cause):
            log.warning(
                "nats.unreachable",
                connection=self.name,
                servers=self._nats.shown_servers,
                login=describe_login(self._nats),
                error=text,
                cost="without a connection statuses become stale, then unknown; it keeps trying",
                hint=hint,
            )

    def _note(self, kind: str, text: str) -> None:
        """Count an error, and log it once per LOG_EVERY. Never raises: nats-py's read loop calls it."""
        with suppress(Exception):
            self._count(kind)
            now = self._clock.mono()
            if kind == "permission_denied":
                self._denials.add(text, now)
            quiet = kind in ("nats_error", "permission_denied") or now - self._logged.get(kind, -LOG_EVERY) < LOG_EVERY
            if not quiet:
                self._logged[kind] = now
            (log.debug if quiet else log.warning)("nats.error", connection=self.name, kind=kind, error=text)

    async def _watch(self, client: PatchedClient) -> None:
        """Return once the client is of no use any more. Only a round trip proves that it is."""
        failures, wait, try_at = 0, self._first_denied, math.inf
        self._round_trips.clear()
        self._measured_at = -math.inf
        while not client.ended.is_set() and client.is_connected:
            raise_if_cancelled()
            if failures >= 2:
                client.because = "no answer to a round trip"
                return
            now = self._clock.mono()
            self._denials.report(now)
            if not client.rights.subscriptions:
                wait, try_at = self._first_denied, math.inf
            elif try_at == math.inf:
                try_at = now + wait
            elif now >= try_at:
                await self._subscribe_again(client)
                wait = min(2 * wait, LAST_DENIED)
                try_at = self._clock.mono() + wait
            if len(self._round_trips) < MEASURED or now - self._measured_at >= MEASURE_EVERY:
                await self._ping(client)
            replies = client.requests.replies
            if not await sleep_until(client.ended, self._clock, self._probe_every):
                # A reply to a request of our own proves as much as a PONG.
                answers = client.requests.replies > replies or await self._answers(client)
                failures = 0 if answers else failures + 1

    async def _subscribe_again(self, client: PatchedClient) -> None:
        """Try what was refused; a failure of the link shows in the next round trip."""
        with suppress(Exception):
            async with asyncio.timeout(self._probe_timeout):
                await client.rights.subscribe_again()

    async def _answers(self, client: PatchedClient) -> bool:
        """Whether a PING is answered in time. Not `rtt`: it cancels a future that a late PONG then meets, and the read
        loop ends; one slow answer (or one busy moment of our own) would cost the connection."""
        sent_at = self._clock.mono()
        if (pong := await self._ping(client)) is None:
            return False
        done, _ = await asyncio.wait({pong}, timeout=self._probe_timeout)
        if done:
            self._answered_at = sent_at
        return bool(done)

    async def _ping(self, client: PatchedClient) -> asyncio.Future[Any] | None:
        """Send a PING, which measures the link when it is answered; None if that failed."""
        pong: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        sent_at = self._measured_at = self._clock.mono()

        def answered(pong: asyncio.Future[Any]) -> None:
            if not pong.cancelled() and client is self._client:
                self._round_trips.append(self._clock.mono() - sent_at)

        pong.add_done_callback(answered)
        try:
            async with asyncio.timeout(self._probe_timeout):
                await client._send_ping(pong)
        except Exception:  # whatever it is, no answer will come
            return None
        return pong

    async def request(self, subject: str, payload: bytes, seconds: float, headers: dict[str, str] | None = None) -> Msg:
        """One request. Raises Unavailable where no reply came for any reason; the server may have received it. Each of
        those who send requests limits how many are under way, so that what hangs delays only its own kind."""
        try:
            reply = await self.client.request(subject, payload, timeout=seconds, headers=headers)
        except Unavailable:
            raise
        except TimeoutError:
            raise Unavailable(f"{subject}: no reply in time") from None
        except Exception as error:  # a client that closes meanwhile raises many types, uvloop's RuntimeError too
            raise Unavailable(f"{subject}: {explain(error)}") from error
        raise_if_cancelled()
        return reply
