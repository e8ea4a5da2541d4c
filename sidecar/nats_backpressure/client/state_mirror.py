"""What a watch has seen: the states, the proofs that they still hold, and what follows for each subject asked about.

Pure: times are arguments, in monotonic seconds of this process. No other machine's clock is trusted: a proof is the
arrival of a heartbeat whose `sampled_at` moved, never what it says the time is.
"""

from __future__ import annotations

import math
from datetime import datetime

from nats_backpressure.client.admission import Limits, LocalDecision, local_decision, worst
from nats_backpressure.client.gate import NEVER, Gate, HeldState
from nats_backpressure.client.subject_filter import SubjectFilter
from nats_backpressure.client.values import HeartbeatValue, StateValue, read
from nats_backpressure.protocol.opening import MISSED
from nats_backpressure.protocol.subjects import HEARTBEAT, BadTail, covers, decode, is_literal

MOST_KEYS = 10_000
"""States kept; a further key is left out and counted (`keys_refused`)."""
MOST_INSTANCES = 64
"""Instances whose last heartbeat is remembered; the one that beat longest ago makes room: each rollout brings new
names, and a gateway outlives many rollouts."""
ORPHAN_LIFE = 3600.0
"""Seconds for which a state is kept that vanished without being deleted."""


class HeartbeatAge:
    """The heartbeats, of however many instances."""

    __slots__ = ("left", "limits", "proof", "sampled")

    def __init__(self) -> None:
        self.proof, self.limits = NEVER, Limits()
        self.left: float | None = None
        """When the last replica said that it stops; None as soon as another one beats."""
        self.sampled: dict[str, str | None] = {}
        """Each instance's last `sampled_at`, the one that beat longest ago first."""

    def hear(self, beat: HeartbeatValue, written: float, stamp: float) -> None:
        """A heartbeat proves something only if its sampling moved on since the same instance's last one. Of the first
        one this cannot be told: there its times are compared, at worst it looks too old until the second."""
        stale_after = max(beat.stale_after_ms, MISSED * beat.heartbeat_ms) / 1000
        interval = max(beat.interval_ms, beat.heartbeat_ms) / 1000
        self.limits = Limits(stale_after, max(beat.unknown_after_ms / 1000, 2 * stale_after), interval)
        if beat.leaving:
            self.left = written if self.left is None else self.left
            return
        last = self.sampled.pop(beat.instance, None)
        if last is None and len(self.sampled) >= MOST_INSTANCES:
            del self.sampled[next(iter(self.sampled))]
        self.sampled[beat.instance] = beat.sampled_at
        if beat.sampled_at is None or beat.sampled_at == last:
            return
        self.proof = max(self.proof, written - (_lag(beat.sampled_at, stamp) if last is None else 0.0))
        self.left = None


class StateMirror:
    """`version` changes with everything heard, `keys_version` when keys come or go."""

    def __init__(self) -> None:
        self.version = self.keys_version = 0
        self.interest = SubjectFilter()
        self.entries: dict[str, HeldState] = {}
        self._wildcards: dict[str, HeldState] = {}
        self._pulse: HeartbeatAge | None = None
        """None before the first heartbeat."""
        self._seen: set[str] | None = None
        """The subjects of the snapshot under way; None while live."""
        self._beats: list[tuple[HeartbeatValue, float, float]] = []

    def begin(self) -> None:
        """A snapshot begins: its heartbeats prove nothing before the last of its states is in."""
        self._seen, self._beats = set(), []

    def complete(self, now: float) -> None:
        """It is whole. A state that is not in it was not deleted, it vanished: it stays, and ages, since a gap
        must not look like calm."""
        seen, self._seen = self._seen or set(), None
        for subject, entry in tuple(self.entries.items()):
            if subject not in seen and not entry.orphan:
                entry.proof, entry.orphan = self._proof(entry), True
            if entry.orphan and now - entry.proof > ORPHAN_LIFE:
                self._drop(subject)
        for beat in self._beats:
            self._hear(*beat)
        self._beats = []
        self.version += 1

    def put(self, key: str, value: bytes, written: float, stamp: float) -> str | None:
        """A key's value, written at `written` by our clock and `stamp` (Unix seconds) by the server's. Returns the
        name of what was wrong with it: such a state is none, and its subject is admitted."""
        if key == HEARTBEAT:
            return self._beat(value, written, stamp)
        try:
            subject = decode(key)
        except BadTail:
            return None if key.startswith("=") else "malformed_state"
        if not self.interest.wants(subject):
            return None
        known = read(value, StateValue)
        if known is None or known.subject != subject:
            self._drop(subject)
            return "malformed_state"
        return self._keep(subject, known, written)

    def delete(self, key: str) -> None:
        try:
            self._drop(decode(key))
        except BadTail:
            return

    def blind(self, now: float) -> bool:
        """Whether there were heartbeats before, and none for longer than they said there would be."""
        return self._pulse is not None and now - self._pulse.proof >= self._pulse.limits.stale_after

    def refresh(self, gate: Gate, now: float) -> None:
        """Work out what is answered now."""
        if gate.keys_version != self.keys_version:
            gate.entries, gate.keys_version = tuple(self._matching(gate.subject)), self.keys_version
        rulings = [self._ruling(entry, now) for entry in gate.entries]
        found = worst(rulings)
        decides = gate.entries[rulings.index(found)] if rulings else None
        gate.settle(found, decides, min((one.until for one in rulings), default=math.inf))
        gate.version = self.version

    def _ruling(self, entry: HeldState, now: float) -> LocalDecision:
        limits, left = (self._pulse.limits, self._pulse.left) if self._pulse else (Limits(), None)
        if left is not None and left < entry.written:  # somebody wrote it since
            left = None
        return local_decision(entry.known, self._proof(entry), limits, left, now)

    def _proof(self, entry: HeldState) -> float:
        if self._pulse is None or entry.orphan or not entry.known.renewed:
            return entry.proof
        return max(entry.proof, self._pulse.proof)

    def _proved(self, entry: HeldState, known: StateValue, written: float) -> float:
        """When a state that was just written was proved to hold. One that is not known proves nothing by itself."""
        if known.renewed:
            return written
        if known.proof_age_ms is not None:
            return written - known.proof_age_ms / 1000
        return min(written, max(self._proof(entry), written - Limits().unknown_after))

    def _keep(self, subject: str, known: StateValue, written: float) -> str | None:
        if self._seen is not None:
            self._seen.add(subject)
        entry = self.entries.get(subject)
        if entry is None:
            if len(self.entries) >= MOST_KEYS:
                return "keys_refused"
            entry = self.entries[subject] = HeldState(subject, known)
            if not is_literal(subject):
                self._wildcards[subject] = entry
            self.keys_version += 1
        entry.proof = self._proved(entry, known, written)
        entry.known, entry.written, entry.orphan = known, written, False
        self.version += 1
        return None

    def _drop(self, subject: str) -> None:
        if self._seen is not None:
            self._seen.discard(subject)
        if self.entries.pop(subject, None) is not None:
            self._wildcards.pop(subject, None)
            self.keys_version += 1
            self.version += 1

    def _matching(self, subject: str) -> list[HeldState]:
        """The states that govern a subject; a pattern is about itself alone."""
        found = [self.entries[subject]] if subject in self.entries else []
        if is_literal(subject):
            found += [entry for name, entry in self._wildcards.items() if covers(name, subject)]
        return found

    def _beat(self, value: bytes, written: float, stamp: float) -> str | None:
        if (beat := read(value, HeartbeatValue)) is None:
            return "malformed_heartbeat"
        if self._seen is not None:
            self._beats.append((beat, written, stamp))
        else:
            self._hear(beat, written, stamp)
            self.version += 1
        return None

    def _hear(self, beat: HeartbeatValue, written: float, stamp: float) -> None:
        self._pulse = self._pulse or HeartbeatAge()
        self._pulse.hear(beat, written, stamp)


def _lag(sampled_at: str, stamp: float) -> float:
    """Seconds between a sampling and the writing of the heartbeat that tells of it, by two machines' clocks."""
    try:
        return max(0.0, stamp - datetime.fromisoformat(sampled_at).timestamp())
    except (ValueError, OverflowError):
        return math.inf
