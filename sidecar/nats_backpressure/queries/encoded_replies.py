"""GatewayDecisions and ConsumerDecisions: the encoded replies to a gateway and to a consumer, made from answers.

All but a few fields is encoded once. What is granted to a consumer is never repeated: only how the reply looks for that
number of messages is.
"""

from __future__ import annotations

import math

import msgspec
from msgspec.structs import replace

from nats_backpressure.protocol import messages
from nats_backpressure.protocol.requests import ConsumerRequest, GatewayRequest, parse
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action
from nats_backpressure.queries import serialize
from nats_backpressure.queries.decision_tally import Count
from nats_backpressure.queries.decisions import SHORTEST_VALID, gateway_choice, milliseconds_valid
from nats_backpressure.queries.encoded_decisions import LARGEST_ANSWER, LIFE, OVERHEAD, EncodedDecisions, Entry
from nats_backpressure.queries.lookup import SubjectAnswer
from nats_backpressure.queries.pulls import Granted, PullRequest, pull_request

MOST_LOOKS = 4
"""Numbers of granted messages per reply to a consumer, as which it is kept."""
TIMES, WAIT = b'"sampled_at":null,"valid_for_ms":0', b'"wait_ms":0'
"""What is replaced in a reply. No text in it can look like this, since a quotation mark within one is escaped."""


class _GatewayReply:
    __slots__ = ("after", "answers", "before", "body", "count", "decisive", "timed", "until")

    def __init__(self, decisive: int, before: bytes, after: bytes, count: Count) -> None:
        """`decisive` is the position of the answer that decides; the times are in the middle."""
        self.decisive, self.before, self.after, self.count = decisive, before, after, count
        self.body, self.until = b"", -math.inf
        """With the times as they are until then."""
        self.answers: list[SubjectAnswer] = []
        self.timed = b""
        """What is before its validity, and the answers that it is about."""


class _ConsumerReply:
    __slots__ = ("bodies", "pull")

    def __init__(self, pull: PullRequest) -> None:
        self.pull = pull
        self.bodies: dict[tuple[int, Action | None], tuple[bytes, bytes, Count]] = {}
        """By what is granted: the reply before and after its wait."""


class GatewayDecisions(EncodedDecisions[_GatewayReply]):
    """Answers of `decide.gateway`."""

    def _is_repeated(self, old: list[SubjectAnswer], new: list[SubjectAnswer]) -> bool:
        return len(old) == len(new) and all(map(SubjectAnswer.decides_as, old, new))

    def _made(self, entry: Entry[_GatewayReply], payload: bytes, now: Now) -> _GatewayReply | None:
        request = parse(payload, GatewayRequest)
        if request.preview:
            return None  # not counted: the ordinary way answers it
        choice = gateway_choice(entry.answers, request)
        if (shared := entry.shared.get(choice)) is not None:
            return shared
        decision = self._decisions.gateway_decision(entry.asked, entry.answers, choice)
        before, after = _around(TIMES, replace(decision, sampled_at=None))
        size = len(before) + len(TIMES) + len(after)
        if size > LARGEST_ANSWER - OVERHEAD:
            return None
        reply = entry.shared[choice] = _GatewayReply(choice.decisive, before, after, self._count(decision, now))
        self._resize(entry, OVERHEAD + size)
        return reply

    def _body(self, entry: Entry[_GatewayReply], reply: _GatewayReply, requester: str, mono: float) -> bytes:
        reply.count.n += 1
        if mono >= reply.until or reply.answers is not entry.answers:
            self._set_times(entry, reply, mono)
        return reply.body

    def _set_times(self, entry: Entry[_GatewayReply], reply: _GatewayReply, mono: float) -> None:
        """Set the times: for LIFE, with the validity as it is at its end; the shortest one does not become shorter."""
        if reply.answers is not entry.answers:
            at = msgspec.json.encode(serialize.format_time(entry.answers[reply.decisive].view.sampled_at))
            reply.timed = b'%b"sampled_at":%b,"valid_for_ms":' % (reply.before, at)
            reply.answers = entry.answers
        valid = milliseconds_valid(self._decisions.valid_until(entry.answers, reply.decisive), mono + LIFE)
        reply.until = mono + LIFE if valid > 1000 * SHORTEST_VALID else math.inf
        reply.body = b"%b%d%b" % (reply.timed, valid, reply.after)


class ConsumerDecisions(EncodedDecisions[_ConsumerReply]):
    """Answers of `decide.consumer`: the grant is made for each request."""

    def _is_repeated(self, old: list[SubjectAnswer], new: list[SubjectAnswer]) -> bool:
        return False  # a grant is made from the newest answers

    def _made(self, entry: Entry[_ConsumerReply], payload: bytes, now: Now) -> _ConsumerReply | None:
        request = parse(payload, ConsumerRequest)
        if request.preview or request.leaving:
            return None
        reply = _ConsumerReply(pull_request(entry.asked, entry.answers, request, now))
        # Of the size of all others, nearly; it is measured before anything is granted.
        before, after, _ = self._look(entry, reply, request.max_messages, None, now)
        size = len(before) + len(after)
        if size > LARGEST_ANSWER - OVERHEAD:
            return None
        self._resize(entry, MOST_LOOKS * size)  # at once: the entry may be dropped before it has them
        return reply

    def _body(self, entry: Entry[_ConsumerReply], reply: _ConsumerReply, requester: str, mono: float) -> bytes:
        granted = self._decisions.grants.grant(reply.pull, requester, mono)
        look = reply.bodies.get((granted.n, granted.would))
        if look is None:
            look = self._look(entry, reply, granted.n, granted.would, self._now())
        before, after, count = look
        count.n += 1
        return b'%b"wait_ms":%d%b' % (before, granted.wait_ms, after)

    def _look(
        self, entry: Entry[_ConsumerReply], reply: _ConsumerReply, n: int, would: Action | None, now: Now
    ) -> tuple[bytes, bytes, Count]:
        """How the reply looks when `n` messages are granted: before and after its wait."""
        granted = Granted(n, 0, would)
        decision = self._decisions.consumer_decision(entry.asked, entry.answers, reply.pull, granted)
        look = *_around(WAIT, decision), self._count(decision, now)
        if len(reply.bodies) < MOST_LOOKS:
            reply.bodies[n, would] = look
        return look


def _around(place: bytes, decision: messages.Decision) -> tuple[bytes, bytes]:
    """A decision, encoded: what is before a place, and what is after it."""
    before, _, after = msgspec.json.encode(decision).partition(place)
    return before, after
