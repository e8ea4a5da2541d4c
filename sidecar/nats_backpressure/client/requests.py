"""Sends decide requests to the sidecar: shared, reused while valid, and answered with "continue" during an outage."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from msgspec.structs import replace
from nats.aio.client import Client
from nats.errors import NoRespondersError

from nats_backpressure.client.inbox import Inbox, denied_inbox
from nats_backpressure.client.newest import put_newest
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.protocol.messages import Decision, Pull
from nats_backpressure.protocol.subjects import LONGEST_TAIL, Names, encode
from nats_backpressure.protocol.values import Role

FailedOpen = Literal[
    "timeout",
    "no_responders",
    "disconnected",
    "unavailable",
    "outage",
    "busy",
    "unwatched",
    "refused",
    "malformed",
    "no_subject",
]
"""Why there is no decision."""

TIMEOUT = 0.25
"""Seconds a caller waits by default."""
REQUEST_TIMEOUT = 2.0
"""Seconds after which a request is given up; an answer between TIMEOUT and this still ends an outage."""
PROBE_INTERVAL = 1.0
"""Seconds between two requests during an outage; all other calls continue at once."""
MAX_REQUESTS = 256
"""Requests under way; a further one fails open at once (`busy`)."""
MAX_CALLERS = 10_000
"""Callers waiting for them; a further one fails open at once (`busy`)."""
MAX_CACHED = 10_000
"""Answers cached for reuse; the oldest makes room."""
MAX_VALID = 5.0
"""Seconds; no answer is reused for longer, whatever it says."""
OUTAGE: Final[frozenset[FailedOpen]] = frozenset({"timeout", "no_responders", "disconnected", "unavailable"})
"""Failures that do not depend on the request: the sidecar or the way to it is away."""


class Answer(Decision, frozen=True, kw_only=True):
    """The sidecar's Decision; or, if `failed_open` says why there is none, permission to continue."""

    failed_open: FailedOpen | None = None


@dataclass(frozen=True)
class RequestKey:
    """Equal requests share one answer."""

    subject: str
    role: Role
    payload: bytes


class RequestSender:
    """One request at a time per gateway subject; during an outage only probes until one is answered."""

    def __init__(
        self,
        nc: Client,
        names: Names,
        stats: Stats,
        logger: OnceLogger,
        *,
        max_requests: int = MAX_REQUESTS,
        max_callers: int = MAX_CALLERS,
        max_cached: int = MAX_CACHED,
    ) -> None:
        self._nc, self._prefix, self._stats, self._logger = nc, names.prefix, stats, logger
        self._max_requests, self._max_callers, self._max_cached = max_requests, max_callers, max_cached
        self._cache: dict[RequestKey, tuple[float, Answer]] = {}
        """Each with the time until which it is valid."""
        self._shared: dict[RequestKey, asyncio.Task[Answer]] = {}
        self._under_way: set[asyncio.Task[Answer]] = set()
        self._callers = 0
        self._in_outage = False
        self._probe_at = self._answered_at = -math.inf

    async def decide(
        self, subject: str, role: Role, fields: dict[str, Any], timeout: float, inbox: Inbox | None = None
    ) -> Answer:
        """The answer, or "continue" with `failed_open`. Raises nothing for a failure of NATS or of the sidecar."""
        if not _is_usable(subject):
            self._stats.count("no_subject")
            self._logger.warn("no_subject", "ask", f"decide() without a usable subject ({subject!r:.80}): admitted")
            return self._open(subject, role, fields, "no_subject")
        key, began = RequestKey(subject, role, msgspec.json.encode(fields)), time.monotonic()
        if (cached := self._cache.get(key)) and began < cached[0]:
            self._stats.count("reused", subject)
            return cached[1]
        if (task := self._task(key, inbox)) is None:
            return self._open(subject, role, fields, "outage" if self._in_outage else "busy")
        answer = await self._wait(task, timeout)
        if answer is None:
            self._unshare(key, task)  # the next caller sends a request of its own
            self._begin_outage("timeout", began)
            return self._open(subject, role, fields, "timeout")
        return answer if answer.failed_open is None else self._open(subject, role, fields, answer.failed_open)

    def cancel(self) -> None:
        for task in tuple(self._under_way):
            task.cancel()

    def _task(self, key: RequestKey, inbox: Inbox | None) -> asyncio.Task[Answer] | None:
        """The request under way, a new one or another caller's; None where none may be sent now."""
        if self._callers >= self._max_callers:
            return None
        if (shared := self._shared.get(key)) is not None and not self._in_outage:
            self._stats.count("reused", key.subject)
            return shared
        if self._in_outage:
            self._probe(key)
            return None
        return self._start(key, inbox)

    def _probe(self, key: RequestKey) -> None:
        """No caller waits for it; it asks as a gateway, since a consumer's grant would stay reserved."""
        if (now := time.monotonic()) >= self._probe_at:
            self._probe_at = now + PROBE_INTERVAL * random.uniform(0.7, 1.3)
            self._start(RequestKey(key.subject, "gateway", b"{}"))

    def _start(self, key: RequestKey, inbox: Inbox | None = None) -> asyncio.Task[Answer] | None:
        if len(self._under_way) >= self._max_requests:
            return None
        task = asyncio.create_task(self._send(key, inbox), name=f"decide {key.subject[:80]}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        if key.role == "gateway":
            self._shared[key] = task
            task.add_done_callback(lambda done: self._unshare(key, done))
        return task

    def _unshare(self, key: RequestKey, task: asyncio.Task[Answer]) -> None:
        if self._shared.get(key) is task:
            del self._shared[key]

    async def _wait(self, task: asyncio.Task[Answer], timeout: float) -> Answer | None:
        # Not asyncio.timeout: a publish to a server that stalls cannot be cancelled, and the caller must get away.
        self._callers += 1
        try:
            await asyncio.wait({task}, timeout=timeout)
        finally:
            self._callers -= 1
        return task.result() if task.done() and not task.cancelled() else None

    async def _send(self, key: RequestKey, inbox: Inbox | None) -> Answer:
        """Send one request and return its answer to all that wait; it may start or end an outage."""
        sent_at = time.monotonic()
        self._stats.count("asked", key.subject)
        answer = await self._reply(key, inbox)
        if answer.failed_open is not None and answer.failed_open in OUTAGE:
            self._begin_outage(answer.failed_open, sent_at)
            return answer
        self._answered_at = time.monotonic()
        if self._in_outage:
            self._in_outage = False
            self._logger.resolve("outage", "", "the backpressure sidecar answers again")
        if answer.failed_open is None and answer.valid_for_ms and key.role == "gateway":
            # Valid from when it was sent: an answer that took long is not used for longer.
            until = sent_at + min(answer.valid_for_ms / 1000, MAX_VALID)
            put_newest(self._cache, key, (until, answer), self._max_cached)
        return answer

    async def _reply(self, key: RequestKey, inbox: Inbox | None) -> Answer:
        if not self._nc.is_connected:  # nats-py would keep the request and send it on the next connection
            return _failed(key, "disconnected")
        try:
            subject = f"{self._prefix}.decide.{key.role}.{encode(key.subject)}"
            request = self._nc.request if inbox is None else inbox.request
            reply = await request(subject, key.payload, timeout=REQUEST_TIMEOUT)
        except NoRespondersError:
            return _failed(key, "no_responders")
        except TimeoutError:
            return _failed(key, "timeout")
        except Exception:  # a client that closes during a request makes nats-py raise many things
            return _failed(key, "disconnected")
        headers = reply.headers or {}
        if code := headers.get("Nats-Service-Error-Code"):
            return self._service_error(key, code, headers.get("Nats-Service-Error", ""))
        answer = read_message(reply.data, Answer)
        if answer is None or (key.role == "consumer" and answer.pull is None):
            self._stats.count("malformed_reply", key.subject)
            self._logger.warn("malformed_reply", "", "the sidecar's reply cannot be decoded: continuing without it")
            return _failed(key, "malformed")
        return replace(answer, failed_open=None)

    def _service_error(self, key: RequestKey, code: str, text: str) -> Answer:
        if code not in ("400", "404"):
            return _failed(key, "unavailable")
        reason: FailedOpen = "unwatched" if code == "404" else "refused"
        if reason == "unwatched":
            self._stats.count("unwatched", key.subject)
        self._logger.warn(
            reason, key.subject, f"the sidecar cannot decide: {text[:200]} ({code}); continuing without it"
        )
        return _failed(key, reason)

    def _begin_outage(self, why: str, sent_at: float) -> None:
        """Unless anything was answered since: then only this request is slow, or it is an old one."""
        if not self._in_outage and sent_at >= self._answered_at:
            self._in_outage = True
            self._probe_at = time.monotonic() + PROBE_INTERVAL * random.uniform(0.7, 1.3)
            self._stats.count("outages")
            text = f"the backpressure sidecar does not answer ({why}): continuing without it{denied_inbox(self._nc)}"
            self._logger.warn("outage", "", text)

    def _open(self, subject: str, role: Role, fields: dict[str, Any], why: FailedOpen) -> Answer:
        self._stats.count("failed_open", subject)
        requested = fields.get("max_messages")
        pull = Pull(requested) if role == "consumer" and isinstance(requested, int) else None
        return Answer(subject, role, pull=pull, failed_open=why)


def _failed(key: RequestKey, why: FailedOpen) -> Answer:
    return Answer(key.subject, key.role, failed_open=why)


def _is_usable(subject: object) -> bool:
    """Whether the sidecar can be asked about it."""
    if not isinstance(subject, str) or "" in subject.split("."):
        return False
    try:
        return len(encode(subject)) <= LONGEST_TAIL
    except UnicodeEncodeError:  # half of a surrogate pair: JSON can have one
        return False
