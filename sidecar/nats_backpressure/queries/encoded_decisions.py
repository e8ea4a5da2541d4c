"""EncodedDecisions: keeps the decisions of the last moment encoded, so that the same question costs a look-up.

An answer is good until an input changes one of the states it rests on, and for LIFE at most: until then it differs
from a new one in nothing but `valid_for_ms`, what age alone changes, and the end of an override. What is granted to a
consumer is never repeated: only how the answer looks for that number of messages is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
from msgspec.structs import replace

from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.requests import ConsumerRequest, GatewayRequest, parse
from nats_backpressure.protocol.subjects import decode
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action
from nats_backpressure.queries.decision_tally import Count, DecisionTally
from nats_backpressure.queries.decisions import SHORTEST_VALID, DecisionService
from nats_backpressure.queries.dispatch import label
from nats_backpressure.queries.lookup import SubjectAnswer
from nats_backpressure.queries.pulls import Granted, PullRequest, pull_request
from nats_backpressure.runtime.view import ServiceView

LIFE = 0.05
"""Seconds for which an answer is repeated at most."""
MOST_ANSWERS, MOST_BYTES = 4096, 4 * 1024 * 1024
"""Answers per endpoint, and bytes of them with their requests; beyond, the oldest are dropped. More than 4,096 in LIFE
are more than one process answers."""
LARGEST_ANSWER, LARGEST_REQUEST = 16 * 1024, 1024
"""Bytes; what is larger is not kept, and answered in the ordinary way."""
MOST_LOOKS = 4
"""Numbers of granted messages per answer of a consumer, as which it is kept."""
WAIT_PLACE = 987_654_321
"""Stands for the milliseconds of a wait, which are drawn for each request."""

E = TypeVar("E", bound="_Entry")


class _Entry:
    """What an answer rests on."""

    __slots__ = ("generation", "size", "states", "until", "watched")

    def __init__(self) -> None:
        self.states: tuple[tuple[str, SubjectState | None], ...] = ()
        self.watched: tuple[int, str] = 0, ""
        """How many subjects there were, and the newest: another one may cover this one too."""
        self.until = 0.0
        self.generation = 0
        self.size = 0


class _GatewayEntry(_Entry):
    __slots__ = ("body", "count")

    def __init__(self, body: bytes, count: Count) -> None:
        super().__init__()
        self.body, self.count = body, count


class _ConsumerEntry(_Entry):
    __slots__ = ("answers", "bodies", "pull", "subject")

    def __init__(self, subject: str, answers: list[SubjectAnswer], pull: PullRequest) -> None:
        super().__init__()
        self.subject, self.answers, self.pull = subject, answers, pull
        self.bodies: dict[tuple[int, Action | None], tuple[bytes, bytes, Count]] = {}
        """By what is granted: the answer before and after its wait."""


class EncodedDecisions(Generic[E]):
    """Answers requests of one endpoint. Raises RequestRefused, BadTail and BadRequest; returns None for what is too
    large to be kept."""

    largest = LARGEST_ANSWER

    def __init__(
        self,
        endpoint: str,
        decisions: DecisionService,
        service: ServiceView,
        now: Callable[[], Now],
        mono: Callable[[], float],
        tally: DecisionTally,
    ) -> None:
        """`endpoint` is the subject of requests up to the tail; `mono` is the first part of `now`."""
        self._start = len(endpoint.encode())
        self._decisions, self._service, self._tally = decisions, service, tally
        self._now, self._mono = now, mono
        self._entries: dict[tuple[bytes, bytes], E] = {}
        self._size = 0
        self._subjects: dict[bytes, str] = {}
        """What the tails of requests decode to."""
        self.answered, self.seconds = 0, 0.0

    def __call__(self, subject: bytes, payload: bytes, requester: str) -> bytes | None:
        started = self._mono()
        entry = self._entries.get((subject, payload))
        if entry is None or not self._is_current(entry, started):
            entry = self._renewed(subject, payload)
            if entry is None:
                return None
        body = self._body(entry, requester, started)
        seconds = self._mono() - started
        self.answered += 1
        self.seconds += seconds
        self._tally.durations.n += 1
        self._tally.seconds += seconds
        return body

    def _is_current(self, entry: E, mono: float) -> bool:
        if mono >= entry.until or entry.generation != self._tally.generation:
            return False
        subjects = self._service.subjects
        for name, state in entry.states:
            if subjects.get(name) is not state:
                return False
        return entry.watched == self._watched

    @property
    def _watched(self) -> tuple[int, str]:
        subjects = self._service.subjects
        return len(subjects), next(reversed(subjects), "")  # type: ignore[arg-type]  # a dict: the newest is last

    def _renewed(self, subject: bytes, payload: bytes) -> E | None:
        now = self._now()
        self._drop((subject, payload))
        asked = self._decoded(subject)
        answers = self._decisions.find(asked, now)
        entry = self._made(asked, payload, answers, now)
        entry.until = now.mono + LIFE
        entry.generation, entry.watched = self._tally.generation, self._watched
        states: dict[str, SubjectState | None] = {asked: None} | {a.state.subject: a.state for a in answers}
        entry.states = tuple(states.items())
        entry.size += len(subject) + len(payload)
        if entry.size > LARGEST_ANSWER or len(payload) > LARGEST_REQUEST:
            return None
        self._size += entry.size
        self._entries[subject, payload] = entry
        while len(self._entries) > MOST_ANSWERS or self._size > MOST_BYTES:
            self._drop(next(iter(self._entries)))
        return entry

    def _decoded(self, subject: bytes) -> str:
        if (decoded := self._subjects.get(subject)) is None:
            decoded = decode(subject[self._start :].decode())
            if len(self._subjects) >= MOST_ANSWERS:
                del self._subjects[next(iter(self._subjects))]
            self._subjects[subject] = decoded
        return decoded

    def _drop(self, key: tuple[bytes, bytes]) -> None:
        if (entry := self._entries.pop(key, None)) is not None:
            self._size -= entry.size

    def _count(self, decision: messages.Decision, now: Now) -> Count:
        subject = label(decision, self._decisions, now)
        return self._tally.count_of(subject, decision.role, decision.action, decision.would)

    @abstractmethod
    def _made(self, subject: str, payload: bytes, answers: list[SubjectAnswer], now: Now) -> E:
        """A new entry."""

    @abstractmethod
    def _body(self, entry: E, requester: str, mono: float) -> bytes:
        """The answer to one request; it is counted."""


class GatewayDecisions(EncodedDecisions[_GatewayEntry]):
    """Answers of `decide.gateway`. They say how long they are valid as they will at the end of their life."""

    def _made(self, subject: str, payload: bytes, answers: list[SubjectAnswer], now: Now) -> _GatewayEntry:
        decision = self._decisions.gateway_decision(subject, answers, parse(payload, GatewayRequest), now)
        valid = decision.valid_for_ms
        decision = replace(decision, valid_for_ms=valid and max(SHORTEST_VALID, valid - round(1000 * LIFE)))
        entry = _GatewayEntry(msgspec.json.encode(decision), self._count(decision, now))
        entry.size = len(entry.body)
        return entry

    def _body(self, entry: _GatewayEntry, requester: str, mono: float) -> bytes:
        entry.count.n += 1
        return entry.body


class ConsumerDecisions(EncodedDecisions[_ConsumerEntry]):
    """Answers of `decide.consumer`: the grant is made for each request."""

    def _made(self, subject: str, payload: bytes, answers: list[SubjectAnswer], now: Now) -> _ConsumerEntry:
        request = parse(payload, ConsumerRequest)
        entry = _ConsumerEntry(subject, answers, pull_request(subject, answers, request, now))
        # Of the size of all others, nearly; it is measured before anything is granted.
        before, after, _ = self._look(entry, request.max_messages, None, now)
        entry.size = len(before) + len(after)
        return entry

    def _body(self, entry: _ConsumerEntry, requester: str, mono: float) -> bytes:
        granted = self._decisions.grants.grant(entry.pull, requester, mono)
        look = entry.bodies.get((granted.n, granted.would))
        if look is None:
            look = self._look(entry, granted.n, granted.would, self._now())
        before, after, count = look
        count.n += 1
        return b"%b%d%b" % (before, granted.wait_ms, after)

    def _look(self, entry: _ConsumerEntry, n: int, would: Action | None, now: Now) -> tuple[bytes, bytes, Count]:
        """How the answer looks when `n` messages are granted: before and after its wait."""
        granted = Granted(n, WAIT_PLACE, would)
        decision = self._decisions.consumer_decision(entry.subject, entry.answers, entry.pull, granted)
        before, _, after = msgspec.json.encode(decision).rpartition(b"%d" % WAIT_PLACE)
        look = before, after, self._count(decision, now)
        if len(entry.bodies) < MOST_LOOKS:
            entry.bodies[n, would] = look
        return look
