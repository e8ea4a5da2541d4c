"""EncodedDecisions: keeps decisions encoded by subject, so that a question whose answer did not change is a look-up.

The answers of the watched subjects that match are computed again at the first request after an input of one of them.
Without an input, one that age or an override may change is repeated for LIFE at most; any other for CALM_LIFE, and not
beyond the moment at which age may change it. Where the new answers say the same, the replies are used again, with other
times. `queries/encoded_replies.py` has how replies are made of answers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.subjects import decode
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.queries.decision_tally import Count, DecisionTally
from nats_backpressure.queries.decisions import DecisionService
from nats_backpressure.queries.dispatch import label
from nats_backpressure.queries.lookup import SubjectAnswer
from nats_backpressure.runtime.view import ServiceView

LIFE, CALM_LIFE = 0.05, 0.5
"""Seconds for which an answer is repeated at most: one that age or an override may change, and any other. Looks at the
streams may have proved that one later than its `sampled_at` says. `valid_for_ms` is computed again after LIFE."""
MOST_ENTRIES, MOST_BYTES = 4096, 4 * 1024 * 1024
"""Subjects per endpoint, and bytes of their replies and requests; beyond, those computed longest ago are dropped."""
LARGEST_ANSWER, LARGEST_REQUEST = 16 * 1024, 1024
"""Bytes; what is larger is not kept, and answered in the ordinary way."""
OVERHEAD = 150
"""Bytes that each entry and each reply takes, about, besides its text."""
MOST_PAYLOADS = 64
"""Payloads per subject whose replies are kept; at more, all of them are dropped."""

R = TypeVar("R")


class Entry(Generic[R]):
    """The answers to requests about one subject, and the replies made from them."""

    __slots__ = (
        "answers",
        "asked",
        "generation",
        "replies",
        "shared",
        "size",
        "smallest",
        "states",
        "until",
        "watched",
    )

    def __init__(self, asked: str, size: int, generation: int) -> None:
        self.asked, self.smallest, self.size, self.generation = asked, size, size, generation
        self.answers: list[SubjectAnswer] = []
        self.states: tuple[tuple[str, SubjectState], ...] = ()
        """The subjects and states of the answers."""
        self.watched = 0
        """`watched_changes` of that time."""
        self.until = 0.0
        self.replies: dict[bytes, R] = {}
        """By payload."""
        self.shared: dict[Hashable, R] = {}
        """By what they depend on: several payloads may have one in common."""


class EncodedDecisions(Generic[R]):
    """Answers requests of one endpoint. Raises RequestRefused, BadTail and BadRequest; returns None for what is too
    large to be kept, and for a preview."""

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
        self._entries: dict[bytes, Entry[R]] = {}
        """By the subject of the request."""
        self._size = 0
        self.answered, self.seconds = 0, 0.0
        tally.add(self)

    def __call__(self, subject: bytes, payload: bytes, requester: str) -> bytes | None:
        started = self._mono()
        entry = self._entries.get(subject)
        if entry is None or started >= entry.until or not self._is_current(entry):
            entry = self._renewed(subject, entry)
        reply = entry.replies.get(payload)
        if reply is None and (reply := self._new_reply(entry, payload)) is None:
            return None
        body = self._body(entry, reply, requester, started)
        self.answered += 1
        self.seconds += self._mono() - started
        return body

    def _is_current(self, entry: Entry[R]) -> bool:
        """Whether no input came since."""
        subjects = self._service.subjects
        for name, state in entry.states:
            if subjects.get(name) is not state:
                return False
        # Where other subjects are watched, another one may cover this one too.
        return entry.watched == self._service.watched_changes and entry.generation == self._tally.generation

    def _renewed(self, subject: bytes, old: Entry[R] | None) -> Entry[R]:
        """An entry with new answers; the old one where they say the same."""
        now, watched, generation = self._now(), self._service.watched_changes, self._tally.generation
        if old is not None:
            self._drop(subject)
        asked = old.asked if old is not None else decode(subject[self._start :].decode())
        same_names = old is not None and old.watched == watched
        names = [name for name, _ in old.states] if old is not None and same_names else self._decisions.names(asked)
        answers = self._decisions.lookup.answers(names, now)
        if old is not None and old.generation == generation and self._is_repeated(old.answers, answers):
            entry = old
        else:
            entry = Entry(asked, OVERHEAD + len(subject), generation)
        entry.answers, entry.watched = answers, watched
        calm = min([answer.calm_until for answer in answers])
        entry.until = min(now.mono + CALM_LIFE, calm) if calm > now.mono else now.mono + LIFE
        entry.states = tuple([(answer.state.subject, answer.state) for answer in answers])
        self._entries[subject] = entry
        self._size += entry.size
        self._drop_oldest()
        return entry

    def _new_reply(self, entry: Entry[R], payload: bytes) -> R | None:
        if len(payload) > LARGEST_REQUEST:
            return None
        if len(entry.replies) >= MOST_PAYLOADS:
            entry.replies.clear()
            entry.shared.clear()
            self._resize(entry, entry.smallest - entry.size)
        if (reply := self._made(entry, payload, self._now())) is not None:
            entry.replies[payload] = reply
            self._resize(entry, OVERHEAD + len(payload))
            self._drop_oldest()
        return reply

    def _resize(self, entry: Entry[R], more: int) -> None:
        entry.size += more
        self._size += more

    def _drop_oldest(self) -> None:
        while len(self._entries) > MOST_ENTRIES or (self._size > MOST_BYTES and len(self._entries) > 1):
            self._drop(next(iter(self._entries)))

    def _drop(self, subject: bytes) -> None:
        self._size -= self._entries.pop(subject).size

    def _count(self, decision: messages.Decision, now: Now) -> Count:
        subject = label(decision, self._decisions, now)
        return self._tally.count_of(subject, decision.role, decision.action, decision.would)

    @abstractmethod
    def _is_repeated(self, old: list[SubjectAnswer], new: list[SubjectAnswer]) -> bool:
        """Whether the replies made from the old answers are those to the new ones too."""

    @abstractmethod
    def _made(self, entry: Entry[R], payload: bytes, now: Now) -> R | None:
        """A new reply to this payload; None where it is too large to be kept, or is not counted."""

    @abstractmethod
    def _body(self, entry: Entry[R], reply: R, requester: str, mono: float) -> bytes:
        """The reply to one request; it is counted."""
