"""Questions to the sidecar: answered in time, or left unanswered, which means go on."""

from __future__ import annotations

import asyncio
import math
import random
import time
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
from msgspec.structs import replace
from nats.aio.client import Client
from nats.errors import NoRespondersError

from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.client.values import Decision, Pull, read
from nats_backpressure.protocol.subjects import LONGEST_TAIL, Names, encode

Role = Literal["gateway", "consumer"]

TIMEOUT = 0.25
"""Seconds a caller waits by default."""
PATIENCE = 2.0
"""Seconds after which an answer is not waited for any more by anybody; one that comes late still ends an outage."""
PROBE_EVERY = 1.0
"""Seconds between questions while nothing answers; in between everybody goes on at once."""
MOST_ASKS = 256
"""Questions under way; a further one fails open at once (`busy`)."""
MOST_CALLERS = 10_000
"""Callers waiting for them; a further one fails open at once (`busy`)."""
MOST_KEPT = 10_000
"""Answers kept for reuse; the oldest makes room."""
LONGEST_VALID = 5.0
"""Seconds; no answer is reused for longer, whatever it says."""
OUTAGE = frozenset({"timeout", "no_responders", "disconnected", "unavailable"})
"""Failures that say nothing about the question: the sidecar or the way to it is away."""


@dataclass(frozen=True)
class RequestKey:
    subject: str
    role: Role
    payload: bytes


class RequestSender:
    """One question at a time per gateway subject; after one that nobody answered, only probes until one is."""

    def __init__(self, nc: Client, names: Names, stats: Stats, voice: OnceLogger) -> None:
        self._nc, self._prefix, self._stats, self._voice = nc, names.prefix, stats, voice
        self._kept: dict[RequestKey, tuple[float, Decision]] = {}
        self._shared: dict[RequestKey, asyncio.Task[Decision]] = {}
        self._under_way: set[asyncio.Task[Decision]] = set()
        self._callers = 0
        self._out = False
        self._probe_at = self._heard_at = -math.inf

    async def decide(self, subject: str, role: Role, about: dict[str, Any], timeout: float) -> Decision:
        """The answer, or the leave to go on. Never raises for what the world does."""
        if not subject or len(tail := encode(subject)) > LONGEST_TAIL or "" in tail.split("."):
            self._stats.count("no_subject")
            self._voice.say("no_subject", "ask", f"a question without a usable subject ({subject[:80]!r}): admitted")
            return self._open(subject, role, about, "no_subject")
        question, began = RequestKey(subject, role, msgspec.json.encode(about)), time.monotonic()
        if (kept := self._kept.get(question)) and began < kept[0]:
            self._stats.count("reused", subject)
            return kept[1]
        if (task := self._task(question)) is None:
            return self._open(subject, role, about, "outage" if self._out else "busy")
        answer = await self._waited(task, timeout)
        if answer is None:
            self._forget(question, task)  # whoever asks next asks anew
            self._outage("timeout", began)
            return self._open(subject, role, about, "timeout")
        return answer if answer.failed_open is None else self._open(subject, role, about, answer.failed_open)

    def cancel(self) -> None:
        for task in tuple(self._under_way):
            task.cancel()

    def _task(self, question: RequestKey) -> asyncio.Task[Decision] | None:
        """The question under way, this one's own or another's; None where none may be asked now."""
        if self._callers >= MOST_CALLERS:
            return None
        if (shared := self._shared.get(question)) is not None and not self._out:
            self._stats.count("reused", question.subject)
            return shared
        if self._out:
            self._probe(question)
            return None
        return self._begin(question)

    def _probe(self, question: RequestKey) -> None:
        """Asked for nobody: as a gateway, since a consumer's grant would be held for it."""
        if (now := time.monotonic()) >= self._probe_at:
            self._probe_at = now + PROBE_EVERY * random.uniform(0.7, 1.3)
            self._begin(RequestKey(question.subject, "gateway", b"{}"))

    def _begin(self, question: RequestKey) -> asyncio.Task[Decision] | None:
        if len(self._under_way) >= MOST_ASKS:
            return None
        task = asyncio.create_task(self._ask(question), name=f"decide {question.subject[:80]}")
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        if question.role == "gateway":
            self._shared[question] = task
            task.add_done_callback(lambda done: self._forget(question, done))
        return task

    def _forget(self, question: RequestKey, task: asyncio.Task[Decision]) -> None:
        if self._shared.get(question) is task:
            del self._shared[question]

    async def _waited(self, task: asyncio.Task[Decision], timeout: float) -> Decision | None:
        # Not asyncio.timeout: a publish to a server that stalls takes no cancel, and a caller must get away.
        self._callers += 1
        try:
            await asyncio.wait({task}, timeout=timeout)
        finally:
            self._callers -= 1
        return task.result() if task.done() and not task.cancelled() else None

    async def _ask(self, question: RequestKey) -> Decision:
        """Ask once; what came of it is told to all who wait, and ends or begins an outage."""
        asked = time.monotonic()
        self._stats.count("asked", question.subject)
        answer = await self._reply(question)
        if answer.failed_open in OUTAGE:
            self._outage(answer.failed_open, asked)
            return answer
        self._heard_at = time.monotonic()
        if self._out:
            self._out = False
            self._voice.over("outage", "", "the backpressure sidecar answers again")
        if answer.failed_open is None and answer.valid_for_ms and question.role == "gateway":
            if len(self._kept) >= MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            # From when it was asked: however long the answer took, it is not believed for longer.
            self._kept[question] = (asked + min(answer.valid_for_ms / 1000, LONGEST_VALID), answer)
        return answer

    async def _reply(self, question: RequestKey) -> Decision:
        if not self._nc.is_connected:  # nats-py would keep the question and send it into the next connection
            return _failed(question, "disconnected")
        try:
            subject = f"{self._prefix}.decide.{question.role}.{encode(question.subject)}"
            reply = await self._nc.request(subject, question.payload, timeout=PATIENCE)
        except NoRespondersError:
            return _failed(question, "no_responders")
        except TimeoutError:
            return _failed(question, "timeout")
        except Exception:  # a client that closes under a question makes nats-py raise many things
            return _failed(question, "disconnected")
        headers = reply.headers or {}
        if code := headers.get("Nats-Service-Error-Code"):
            return self._refused(question, code, headers.get("Nats-Service-Error", ""))
        answer = read(reply.data, Decision)
        if answer is None or (question.role == "consumer" and answer.pull is None):
            self._stats.count("malformed_reply", question.subject)
            self._voice.say("malformed_reply", "", "the sidecar's answer cannot be read: going on without")
            return _failed(question, "malformed")
        return replace(answer, failed_open=None)

    def _refused(self, question: RequestKey, code: str, why: str) -> Decision:
        if code not in ("400", "404"):
            return _failed(question, "unavailable")
        found = "unwatched" if code == "404" else "refused"
        if found == "unwatched":
            self._stats.count("unwatched", question.subject)
        self._voice.say(found, question.subject, f"the sidecar cannot decide: {why[:200]} ({code}); going on without")
        return _failed(question, found)

    def _outage(self, why: str, asked: float) -> None:
        """It begins, unless anything was answered since: then it is this question that is slow, or an old one."""
        if not self._out and asked >= self._heard_at:
            self._out = True
            self._probe_at = time.monotonic() + PROBE_EVERY * random.uniform(0.7, 1.3)
            self._stats.count("outages")
            self._voice.say("outage", "", f"the backpressure sidecar does not answer ({why}): going on without it")

    def _open(self, subject: str, role: Role, about: dict[str, Any], why: str) -> Decision:
        self._stats.count("failed_open", subject)
        asked = about.get("max_messages")
        pull = Pull(asked) if role == "consumer" and isinstance(asked, int) else None
        return Decision(subject, role, pull=pull, failed_open=why)


def _failed(question: RequestKey, why: str) -> Decision:
    return Decision(question.subject, question.role, failed_open=why)
