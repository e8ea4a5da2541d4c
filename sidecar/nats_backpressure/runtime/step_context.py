"""StepContexts: what a step must know besides the state: how fresh it can be, and which other replicas write it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from itertools import chain
from typing import Protocol

from nats_backpressure.config.settings import Observe
from nats_backpressure.core.status.freshness import Limits, limits
from nats_backpressure.core.subject.other_policies import is_foreign, is_seen_whole, is_to_be_marked
from nats_backpressure.core.subject.plan_writes import StepContext
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.followed_streams import FollowedStreams
from nats_backpressure.runtime.member_index import MemberIndex


class OtherWriters(Protocol):
    """The other replicas that can write a subject, see `SubjectWriters`."""

    def seen_at(self, subject: str, streams: Iterable[str], any_policies: bool) -> float | None:
        """Monotonic time of the newest sign of the replica that writes a subject with members in these streams; None
        where this one does, -inf where it is too early to know. `any_policies`: whether it may be one with others."""

    def reported_at(self, mark: str, streams: Iterable[str]) -> float:
        """Monotonic time of the newest report of one of them that runs, has readings of a subject with members in these
        streams, and keeps what is stored of it, under policies with this mark; -inf where there is none."""

    def are_cut_off(self) -> bool:
        """Whether there are others, and what they read may not have come: they may see what this one does not."""

    def marks(self) -> frozenset[str] | None:
        """The marks of the policies of the others that can write; None while it is too early to know."""

    def marks_that_lack(self, consumers: Collection[ConsumerKey]) -> frozenset[str]:
        """The marks of the policies of those that can write and do not watch one of these consumers, by its name, where
        that is so of all with this mark."""

    def connected_for(self) -> float:
        """Seconds for which the connection to them is there, as far as round trips prove it."""


class NoOtherWriters:
    """Of a replica that is alone."""

    def seen_at(self, subject: str, streams: Iterable[str], any_policies: bool) -> float | None:
        return None

    def reported_at(self, mark: str, streams: Iterable[str]) -> float:
        return -math.inf

    def are_cut_off(self) -> bool:
        return False

    def marks(self) -> frozenset[str] | None:
        return frozenset()

    def marks_that_lack(self, consumers: Collection[ConsumerKey]) -> frozenset[str]:
        return frozenset()

    def connected_for(self) -> float:
        return math.inf


class StepContexts:
    """Of all subjects. `others` and `watches` are set once they are known."""

    def __init__(
        self, policies: ActivePolicies, streams: FollowedStreams, members: MemberIndex, observe: Observe, writer: str
    ) -> None:
        """`writer` is unique for this process; it is a part of each write's nonce."""
        self.others: OtherWriters = NoOtherWriters()
        self.watches: Callable[[ConsumerKey], bool] = lambda key: True
        """Whether a consumer of this name may be watched here."""
        self.heartbeat = 0.0
        """Seconds between two heartbeats; 0 without any."""
        self._policies, self._streams, self._members = policies, streams, members
        self._observe, self._writer = observe, writer

    def limits(self, interval: float) -> Limits:
        """The freshness limits of a subject that is read every `interval` seconds."""
        observe = self._observe
        return limits(observe.stale_after_seconds, observe.unknown_after_seconds, interval, self.heartbeat)

    def of(self, state: SubjectState, interval: float, newest_read_at: float | None, now: Now) -> StepContext:
        bounds, subject = self.limits(interval), state.subject
        return StepContext(
            bounds.stale_after,
            bounds.unknown_after,
            bounds.interval,
            writer=self._writer,
            newest_read_at=newest_read_at,
            proofs=self._streams.proofs(subject),
            policy_mark=self._policies.mark,
            other_marks=self.others.marks(),
            narrower_marks=self._narrower_marks(state, bounds, now),
            writer_seen_at=self.others.seen_at(subject, self._shared_streams(state), self._is_no_ones(state)),
            others_are_cut_off=self.others.are_cut_off(),
            connected_for=self.others.connected_for(),
        )

    def unwatched_members(self, record: Record | None) -> frozenset[ConsumerKey]:
        """The consumers in a record that only other replicas watch."""
        named = chain(record.latched, record.carried) if record is not None else ()
        return frozenset(key for key, _ in named if not self.watches(key))

    def is_to_be_marked(self, state: SubjectState, interval: float, now: Now) -> bool:
        """Whether what is stored must be written again, so that others find that our policies judge it."""
        narrower = self._narrower_marks(state, self.limits(interval), now)
        return is_to_be_marked(state.record, self._policies.mark, self.others.marks(), narrower)

    def reported_at(self, state: SubjectState) -> float:
        """Monotonic time of the newest report of another replica, which runs and can write, that it has readings of
        what is stored; -inf where there is none."""
        if state.record is None:
            return -math.inf
        return self.others.reported_at(state.record.policy_mark, self._shared_streams(state))

    def _narrower_marks(self, state: SubjectState, limits: Limits, now: Now) -> frozenset[str]:
        """See `StepContext.narrower_marks`."""
        if not is_foreign(state.record, self._policies.mark):
            return frozenset()
        if not (lacking := self.others.marks_that_lack(state.members)):
            return frozenset()
        whole = is_seen_whole(state, self.watches, now, limits, self._streams.proofs(state.subject))
        return lacking if whole else frozenset()

    def _shared_streams(self, state: SubjectState) -> Iterable[str]:
        """The streams of its members that all replicas know alike: those that its record names. Which consumers there
        are may differ: one that started while a node is down does not see those that only that node has. While it
        names none, the streams of the members that are known here."""
        if state.record is None or not (state.record.latched or state.record.carried):
            return self._members.streams_of(state.subject)
        return (key.stream for key, _ in chain(state.record.latched, state.record.carried))

    def _is_no_ones(self, state: SubjectState) -> bool:
        """Whether nothing proves a subject here, and other policies than ours judged it: one that has a proof, under
        whichever policies, is its writer."""
        judged_here = state.record is not None and state.record.policy_mark == self._policies.mark
        return state.newest_proof is None and not judged_here
