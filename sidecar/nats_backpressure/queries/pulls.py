"""Answers requests for pulls: which consumers one is about, and how many messages are granted with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy

from msgspec import Struct

from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.core.admission.grant_shares import ALONE, Share
from nats_backpressure.core.admission.pull_grants import Grant, GrantTracker
from nats_backpressure.core.model.member import Member
from nats_backpressure.core.model.proofs import newest_proof
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.model.worker_reports import NO_REPORTS, WorkerReports
from nats_backpressure.core.status.freshness import freshness
from nats_backpressure.protocol.between_replicas import SharedGrant
from nats_backpressure.protocol.requests import ConsumerRequest, RequestRefused
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, ConsumerKey, Freshness
from nats_backpressure.queries.lookup import SubjectAnswer

GRANT_TRACKERS = 20_000
"""Consumers whose grants are tracked; beyond, the one asked for least recently is dropped."""
LONGEST_REQUESTER = 256
"""Characters of the name of a requester; of a longer one the last ones count."""


class PullRequest(Struct, frozen=True):
    """What a request for a pull is about; it grants nothing yet."""

    asked: ConsumerRequest
    chosen: list[SubjectAnswer]
    """The subject of each consumer that is asked about; a subject with several is there several times."""
    enforced: tuple[Member, ...]
    """The consumers that limit the pull. One of which nothing is known limits nothing."""
    observed: tuple[Member, ...] | None
    """Those that would limit it, where the policy of each is in mode `observe`; else None."""


class Granted(Struct, frozen=True):
    n: int
    wait_ms: int
    """Until the next request, where `n` is 0."""
    would: Action | None
    """What enforcing would have answered, under `observe`."""


def pull_request(subject: str, answers: list[SubjectAnswer], request: ConsumerRequest, now: Now) -> PullRequest:
    """Raises RequestRefused where the request names a consumer that is not watched."""
    names_one = request.stream is not None or request.consumer is not None
    chosen = [(a, m) for a in answers for m in _named(a, request)]
    if not chosen and names_one:
        raise RequestRefused(404, f"{subject[:120]} has no watched consumer of this name")
    enforced = [(a, m) for a, m in chosen if m.policy.mode == "enforce"]
    return PullRequest(
        request,
        [answer for answer, _ in chosen],
        _known(enforced, now),
        _known(chosen, now) if chosen and not enforced else None,
    )


def pull_action(n: int, asked: int) -> Action:
    return Action.REJECT if n == 0 else Action.THROTTLE if n < asked else Action.CONTINUE


def asked_of(request: ConsumerRequest, requester: str) -> Asked:
    return Asked(
        request.max_messages,
        requester,
        request.unused,
        request.held,
        request.lost,
        min(request.ahead, request.held or 0),
        request.leaving,
        request.due,
        request.earlier,
    )


class PullGrants:
    """The grants of every consumer that was asked for. `random` is that of the Clock. `share` returns our share of the
    room of a consumer, by its name; `on_grant` is called with what is granted: consumer, messages (0 is a claim: some
    may be granted once the other replicas know that this one is asked), and who asked."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self.share: Callable[[str], Share] = lambda consumer: ALONE
        self.on_grant: Callable[[ConsumerKey, int, Asked], None] = lambda key, n, asked: None
        self._trackers: dict[ConsumerKey, GrantTracker] = {}

    def worker_reports(self, key: ConsumerKey, now: float) -> WorkerReports:
        """What those that ask have said of a consumer."""
        tracker = self._trackers.get(key)
        return NO_REPORTS if tracker is None else tracker.worker_reports(now)

    def grant(self, pull: PullRequest, requester: str, now: float) -> Granted:
        """Grant what all consumers have room for; it is counted with each of them."""
        request = pull.asked
        asked = asked_of(request, requester[-LONGEST_REQUESTER:])
        if asked.leaving:
            return self._leave((*pull.enforced, *(pull.observed or ())), asked, now)
        grant = self._grant(pull.enforced, asked, now)
        would = None
        if pull.observed is not None:
            would = pull_action(self._grant(pull.observed, asked, now, enforced=False).n, asked.n)
        return Granted(grant.n, round(1000 * grant.wait) if grant.n == 0 else 0, would)

    def preview(self, pull: PullRequest, requester: str, now: float) -> Granted:
        """What `grant` would return; nothing is counted, and nobody else learns of it."""
        copy = PullGrants(self._random)
        copy.share = self.share
        members = (*pull.enforced, *(pull.observed or ()))
        copy._trackers = {m.key: deepcopy(self._trackers[m.key]) for m in members if m.key in self._trackers}
        return copy.grant(pull, requester, now)

    def add_foreign(self, replica: str, grant: SharedGrant, reading: Reading, now: float) -> None:
        """Count what another replica granted; `reading` is the newest one of the consumer."""
        tracker = self._tracker(ConsumerKey(grant.stream, grant.consumer))
        asked = Asked(
            max(grant.n, grant.wants),
            grant.asker,
            grant.unused,
            grant.held,
            grant.lost,
            due=grant.due,
            earlier=grant.earlier,
        )
        if grant.leaving:
            tracker.leave(asked, reading, now)
            return
        tracker.add_foreign(replica, grant.n, asked, reading, now)

    def _leave(self, members: tuple[Member, ...], asked: Asked, now: float) -> Granted:
        for member in {member.key: member for member in members}.values():
            if member.reading is not None:
                self._tracker(member.key).leave(asked, member.reading, now)
                self.on_grant(member.key, 0, asked)
        return Granted(0, 0, None)

    def _grant(self, members: tuple[Member, ...], asked: Asked, now: float, *, enforced: bool = True) -> Grant:
        smallest, trackers = Grant(asked.n, 0.0), {}
        for member in members:
            again = member.key in trackers  # it counts under several subjects, each with marks of its own
            said = asked.without_changes() if again else asked
            tracker = trackers[member.key] = self._tracker(member.key)
            one = tracker.offer(member, said, now, self.share(member.key.consumer), self._random())
            if one.n == 0 and not again and (asked.held is not None or tracker.claim_due(now)):
                tracker.claim(now)
                self.on_grant(member.key, 0, asked)
            if one.n == 0 and enforced:
                tracker.refuse(now)
            if one.n < smallest.n or (one.n == smallest.n and one.wait > smallest.wait):
                smallest = one
        if smallest.n > 0:
            for key, tracker in trackers.items():
                tracker.add(smallest.n, asked.requester, now)
                self.on_grant(key, smallest.n, asked)
        return smallest

    def _tracker(self, key: ConsumerKey) -> GrantTracker:
        tracker = self._trackers.pop(key, None) or GrantTracker()
        if len(self._trackers) >= GRANT_TRACKERS:
            del self._trackers[next(iter(self._trackers))]
        self._trackers[key] = tracker
        return tracker


def _known(chosen: list[tuple[SubjectAnswer, Member]], now: Now) -> tuple[Member, ...]:
    return tuple(
        member
        for answer, member in chosen
        if answer.freshness is not Freshness.UNKNOWN
        and answer.stale_reason != "no_quorum"
        and freshness(newest_proof(member, answer.view.proofs), now.mono, answer.limits) is Freshness.KNOWN
    )


def _named(answer: SubjectAnswer, request: ConsumerRequest) -> Iterable[Member]:
    """The consumers of a subject that a request is about: without the name of one the fullest answer for all."""
    view, stream = answer.view, request.stream
    if request.consumer is None:
        return view.fullest if stream is None else view.fullest_by_stream.get(stream, ())
    keys = (ConsumerKey(one, request.consumer) for one in view.fullest_by_stream if stream in (None, one))
    return [member for key in keys if (member := answer.state.members.get(key)) is not None]
