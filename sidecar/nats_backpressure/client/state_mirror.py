"""The client's copy of the state bucket, when each state was last proved, and the decision for each subject. Pure.

Times are arguments, in monotonic seconds of this process. No other machine's clock is trusted: a proof is the arrival
of a heartbeat whose `sampled_at` moved, never the time that it names.
"""

from __future__ import annotations

import math
from datetime import datetime

from nats_backpressure.client.admission import FreshnessLimits, LocalDecision, local_decision, strictest
from nats_backpressure.client.cached_admission import NEVER, CachedAdmission, WatchedState
from nats_backpressure.client.newest import put_newest
from nats_backpressure.client.subject_filter import SubjectFilter
from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.protocol.messages import Heartbeat, State
from nats_backpressure.protocol.patterns import PatternIndex
from nats_backpressure.protocol.refusal_expiry import MISSED
from nats_backpressure.protocol.subjects import HEARTBEAT, BadTail, decode, is_literal

MAX_KEYS = 10_000
"""States kept; for a further one the one that was written longest ago is dropped and counted (`keys_refused`)."""
MAX_INSTANCES = 64
"""Instances whose last heartbeat is remembered; the one with the oldest makes room: each rollout brings new names, and
a gateway outlives many rollouts."""
MAX_SCHEMAS = 4
"""Schemas of heartbeats whose last proof is remembered; the lowest makes room."""
VANISHED_SECONDS = 3600.0
"""Seconds for which a state is kept that vanished without being deleted."""


class HeartbeatAge:
    """When any instance last proved that the states hold, and the limits that the heartbeats name."""

    __slots__ = ("left", "limits", "proofs", "sampled")

    def __init__(self) -> None:
        self.proofs: dict[int, float] = {}
        """By the `schema` of the heartbeat, MAX_SCHEMAS at most."""
        self.limits = FreshnessLimits()
        self.left: float | None = None
        """When the last replica reported that it stops; None after the next proof of any instance."""
        self.sampled: dict[str, str | None] = {}
        """Each instance's last `sampled_at`, the oldest heartbeat first."""

    def receive(self, heartbeat: Heartbeat, written: float, stamp: float) -> None:
        """A heartbeat is a proof only if its `sampled_at` moved since the same instance's last one. The first one has
        nothing to compare with: there its two times are compared, so at worst it looks too old until the second."""
        stale_after = max(heartbeat.stale_after_ms, MISSED * heartbeat.heartbeat_ms) / 1000
        interval = max(heartbeat.interval_ms, heartbeat.heartbeat_ms) / 1000
        unknown_after = max(heartbeat.unknown_after_ms / 1000, 2 * stale_after)
        self.limits = FreshnessLimits(stale_after, unknown_after, interval)
        if heartbeat.leaving:
            self.left = written if self.left is None else self.left
            return
        last = self.sampled.get(heartbeat.instance)
        put_newest(self.sampled, heartbeat.instance, heartbeat.sampled_at, MAX_INSTANCES)
        if heartbeat.sampled_at is None or heartbeat.sampled_at == last:
            return
        lag = _lag(heartbeat.sampled_at, stamp) if last is None else 0.0
        self.proofs[heartbeat.schema] = max(self.proofs.get(heartbeat.schema, NEVER), written - lag)
        if len(self.proofs) > MAX_SCHEMAS:
            del self.proofs[min(self.proofs)]
        self.left = None

    def proof(self, schema: int = 0) -> float:
        """When a state of this schema was last proved: a heartbeat proves nothing of states of a higher one."""
        return max((at for of, at in self.proofs.items() if of >= schema), default=NEVER)


class StateMirror:
    """`version` changes with every state and heartbeat, `keys_version` when keys come or go."""

    def __init__(self, *, max_keys: int = MAX_KEYS) -> None:
        self.version = self.keys_version = 0
        self.filter = SubjectFilter()
        self.states: dict[str, WatchedState] = {}
        self._max_keys = max_keys
        self._index: PatternIndex[WatchedState] = PatternIndex()
        self._heartbeats: HeartbeatAge | None = None
        """None before the first heartbeat."""
        self._snapshot: set[str] | None = None
        """The subjects of the snapshot under way; None while live."""
        self._snapshot_heartbeats: list[tuple[Heartbeat, float, float]] = []
        self._vanished: dict[str, float] = {}
        """The subjects whose state is gone without a deletion (the bucket was created again), and when it was proved
        last: heartbeats prove nothing about it any more."""

    def begin_snapshot(self) -> None:
        """The heartbeats of a snapshot prove nothing before the last of its states is in."""
        self._snapshot, self._snapshot_heartbeats = set(), []

    def end_snapshot(self, now: float) -> None:
        """A state that the snapshot lacks was not deleted, it vanished: it stays, and ages, since a gap must not look
        like calm."""
        present, self._snapshot = self._snapshot or set(), None
        for subject in self.states.keys() - present - self._vanished.keys():
            self._vanished[subject] = self.states[subject].proof = self._proof(self.states[subject])
        self.remove_vanished(now)
        for heartbeat in self._snapshot_heartbeats:
            self._add_heartbeat(*heartbeat)
        self._snapshot_heartbeats = []
        self.version += 1

    def remove_vanished(self, now: float) -> None:
        """Remove the states that vanished and were proved last VANISHED_SECONDS ago."""
        for subject, proof in tuple(self._vanished.items()):
            if now - proof > VANISHED_SECONDS:
                self._remove(subject)

    def put(self, key: str, value: bytes, written: float, stamp: float) -> str | None:
        """Store a key's value, written at `written` by our clock and at `stamp` (Unix seconds) by the server's. Returns
        the name of the counter for what is wrong with it: such a state is ignored, and its subject is admitted."""
        if key == HEARTBEAT:
            return self._put_heartbeat(value, written, stamp)
        try:
            subject = decode(key)
        except BadTail:
            return None if key.startswith("=") else "malformed_state"
        if not self.filter.keeps(subject):
            return None
        state_value = read_message(value, State)
        if state_value is None or state_value.subject != subject:
            self._remove(subject)
            return "malformed_state"
        return self._put_state(subject, state_value, written)

    def fix(self, value: State) -> None:
        """Add a state that never ages."""
        self.filter.add([value.subject])
        self._put_state(value.subject, value, math.inf)

    def delete(self, key: str) -> None:
        try:
            self._remove(decode(key))
        except BadTail:
            return

    def heartbeats_missing(self, now: float) -> bool:
        """Whether heartbeats came before, and none for longer than they promised."""
        return self._heartbeats is not None and now - self._heartbeats.proof() >= self._heartbeats.limits.stale_after

    def refresh(self, cached: CachedAdmission, now: float) -> None:
        """Compute the answer for a subject as of now."""
        if cached.keys_version != self.keys_version:
            cached.states, cached.keys_version = tuple(self._governing(cached)), self.keys_version
        decisions = [self.decision(state, now) for state in cached.states]
        decision = strictest(decisions)
        deciding = cached.states[decisions.index(decision)] if decisions else None
        cached.set(decision, deciding, min((one.until for one in decisions), default=math.inf))
        cached.version = self.version

    def decision(self, state: WatchedState, now: float) -> LocalDecision:
        """What a state of the bucket means now."""
        heartbeats = self._heartbeats
        limits, left = (heartbeats.limits, heartbeats.left) if heartbeats else (FreshnessLimits(), None)
        if left is not None and left < state.written:  # a replica wrote it since
            left = None
        return local_decision(state.value, self._proof(state), limits, left, now)

    def _proof(self, state: WatchedState) -> float:
        if self._heartbeats is None or state.subject in self._vanished or not state.value.renewed:
            return state.proof
        return max(state.proof, self._heartbeats.proof(state.value.schema))

    def _proof_of_write(self, state: WatchedState, value: State, written: float) -> float:
        """When a state that was just written was proved to hold. One that is not known proves nothing by itself."""
        if value.renewed:
            return written
        if value.proof_age_ms is not None:
            return written - value.proof_age_ms / 1000
        return min(written, max(self._proof(state), written - FreshnessLimits().unknown_after))

    def _put_state(self, subject: str, value: State, written: float) -> str | None:
        if self._snapshot is not None:
            self._snapshot.add(subject)
        problem = None
        if (state := self.states.pop(subject, None)) is None:
            if len(self.states) >= self._max_keys:
                self._remove(next(iter(self.states)))
                problem = "keys_refused"
            state = WatchedState(subject, value)
            self._index.add(subject, state)
            self.keys_version += 1
        self.states[subject] = state  # the last one: the first was written longest ago
        state.proof = self._proof_of_write(state, value, written)
        state.value, state.written = value, written
        self._vanished.pop(subject, None)
        self.version += 1
        return problem

    def _remove(self, subject: str) -> None:
        if self._snapshot is not None:
            self._snapshot.discard(subject)
        self._vanished.pop(subject, None)
        if (state := self.states.pop(subject, None)) is not None:
            self._index.remove(subject, state)
            self.keys_version += 1
            self.version += 1

    def _governing(self, cached: CachedAdmission) -> list[WatchedState]:
        """The states that govern a subject; a pattern is governed by its own alone."""
        subject = cached.subject
        if not is_literal(subject):
            return [self.states[subject]] if subject in self.states else []
        return list(self._index.covering(subject))

    def _put_heartbeat(self, value: bytes, written: float, stamp: float) -> str | None:
        if (heartbeat := read_message(value, Heartbeat)) is None:
            return "malformed_heartbeat"
        if self._snapshot is not None:
            self._snapshot_heartbeats.append((heartbeat, written, stamp))
        else:
            self._add_heartbeat(heartbeat, written, stamp)
            self.version += 1
        return None

    def _add_heartbeat(self, heartbeat: Heartbeat, written: float, stamp: float) -> None:
        self._heartbeats = self._heartbeats or HeartbeatAge()
        self._heartbeats.receive(heartbeat, written, stamp)


def _lag(sampled_at: str, stamp: float) -> float:
    """Seconds between a sample and the write of the heartbeat that names it, by two machines' clocks."""
    try:
        return max(0.0, stamp - datetime.fromisoformat(sampled_at).timestamp())
    except (ValueError, OverflowError):
        return math.inf
