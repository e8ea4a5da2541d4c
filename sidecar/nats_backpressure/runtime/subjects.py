"""All subjects of this installation: each stimulus goes through `step` here, and what is to be done goes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from nats_backpressure.config.settings import Observe
from nats_backpressure.core.model import Carried
from nats_backpressure.core.status.freshness import Limits, limits, status_proof
from nats_backpressure.core.subject.inputs import (
    ConsumerJoined,
    ConsumerRead,
    DropSubject,
    Effect,
    Input,
    PolicyChanged,
    Tick,
)
from nats_backpressure.core.subject.next_record import carried_write_due, is_quiescent, worst_member
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.subject.step import Context, step
from nats_backpressure.core.time_windows import TimeWindows, WindowSummary
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.protocol.subjects import is_literal
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Status
from nats_backpressure.runtime.ports import TimeSource


class TimeInStatus(Struct):
    """Seconds a subject has spent in each status since this process knew it, up to `at`."""

    at: float
    status: Status
    seconds: dict[str, float]
    windows: TimeWindows


class SubjectRegistry:
    """States are frozen and replaced: a reader on another thread copies `states` and sees one moment."""

    def __init__(
        self,
        clock: TimeSource,
        observe: Observe,
        rules: ActivePolicies,
        writer: str,
        perform: Callable[[Effect], None],
        interval: Callable[[str], float],
        swept: Callable[[], float | None] = lambda: None,
        heartbeat: float = 0.0,
    ) -> None:
        self.states: dict[str, SubjectState] = {}
        self.wildcards: tuple[str, ...] = ()
        """Watched subjects that are patterns, by name."""
        self._rules = rules
        self._clock = clock
        self._observe = observe
        self._writer = writer
        self._perform = perform
        self._interval, self._swept, self._heartbeat = interval, swept, heartbeat
        self._passed: dict[str, TimeInStatus] = {}

    def limits(self, subject: str) -> Limits:
        """The freshness limits in force for a subject, given how often it is read now."""
        observe = self._observe
        interval = self._interval(subject)
        return limits(observe.stale_after_seconds, observe.unknown_after_seconds, interval, self._heartbeat)

    def open(self, subject: str) -> SubjectState:
        """The subject's state, begun if this is the first that is heard of it."""
        if (state := self.states.get(subject)) is None:
            now = self._clock.now()
            deadline = now.mono + self._observe.unknown_after_seconds
            policy = self._rules.effective(subject).policy
            state = SubjectState(subject=subject, policy=policy, deadline=deadline)
            self.states[subject] = state
            self._passed[subject] = TimeInStatus(now.mono, Status.UNKNOWN, {}, TimeWindows())
            if not is_literal(subject):
                self.wildcards = tuple(sorted({*self.wildcards, subject}))
        return state

    def join(self, subject: str, key: ConsumerKey) -> None:
        self.open(subject)
        self.feed(subject, ConsumerJoined(key, self._rules.effective(subject, key).policy))

    def rule(self, subject: str) -> None:
        """Judge a subject anew under the policies that are in force now."""
        if (state := self.states.get(subject)) is None:
            return
        if (policy := self._rules.effective(subject).policy) != state.policy:
            self.feed(subject, PolicyChanged(policy))
        for key, member in state.members.items():
            if (policy := self._rules.effective(subject, key).policy) != member.policy:
                self.feed(subject, ConsumerJoined(key, policy))

    def feed(self, subject: str, stimulus: Input) -> None:
        """One thing happened to a subject: move its state and have done what follows from it."""
        if (state := self.states.get(subject)) is None:
            return
        now = self._clock.now()
        self.states[subject], acts = step(state, stimulus, now, self._context(subject))
        self._account(subject, now.mono, stimulus)
        for act in acts:
            if isinstance(act, DropSubject):
                self.forget(subject)
            else:
                self._perform(act)

    def stays(self, subject: str, at: Now) -> bool:
        """Whether a look at the time, `at` that moment, would leave the subject as it is."""
        state = self.states[subject]
        after, acts = step(state, Tick(), at, self._context(subject))
        return not acts and (after is state or after == state)

    def _context(self, subject: str) -> Context:
        bounds = self.limits(subject)
        return Context(
            bounds.stale_after, bounds.unknown_after, bounds.interval, writer=self._writer, newest_read_at=self._swept()
        )

    def tick(self) -> None:
        at, sure = self._clock.now(), self._observe.stale_after_seconds
        for subject, state in tuple(self.states.items()):
            newest = status_proof(state.members.values())
            if newest is None or at.mono - newest >= sure or not is_quiescent(state) or carried_write_due(state, at):
                self.feed(subject, Tick())

    def forget(self, subject: str) -> None:
        self.states.pop(subject, None)
        self._passed.pop(subject, None)
        self.wildcards = tuple(name for name in self.wildcards if name != subject)

    def members(self, stream: str) -> Iterable[tuple[ConsumerKey, str]]:
        """Every member of a stream under every subject, remembered ones among them."""
        for subject, state in tuple(self.states.items()):
            for key in state.members:
                if key.stream == stream:
                    yield key, subject

    def streams(self) -> set[str]:
        """The streams any member belongs to."""
        return {key.stream for state in self.states.values() for key in state.members}

    def carried(self, key: ConsumerKey, subjects: Iterable[str]) -> Carried:
        """What was stored of a consumer under these subjects before this process began to read it."""
        found = (self.states[subject].carried.get(key) for subject in subjects if subject in self.states)
        return next((carried for carried in found if carried is not None), Carried())

    def time_in(self, subject: str, now: Now) -> Mapping[str, float]:
        if (passed := self._passed.get(subject)) is None:
            return {}
        word = passed.status.word
        return {**passed.seconds, word: passed.seconds.get(word, 0.0) + max(0.0, now.mono - passed.at)}

    def window(self, subject: str, now: Now, seconds: float) -> WindowSummary | None:
        """What the subject was like lately; None if this process does not know it."""
        passed = self._passed.get(subject)
        return passed.windows.window(now.mono, seconds) if passed else None

    def _account(self, subject: str, now: float, stimulus: Input) -> None:
        state, passed = self.states[subject], self._passed[subject]
        known = state.record is not None and not state.record.unknown and state.revision > 0
        status = state.record.status if state.record is not None and known else Status.UNKNOWN
        if status is not passed.status:
            word = passed.status.word
            passed.seconds[word] = passed.seconds.get(word, 0.0) + now - passed.at
            passed.at, passed.status = now, status
        read = stimulus.reading if isinstance(stimulus, ConsumerRead) else None
        if read is not None and len(state.members) > 1:
            speaks = worst_member(state.members.values())
            read = read if speaks is not None and speaks.key == read.key else None
        passed.windows.add(now, status, read)
