"""StrictestStates: which state decides where only a pattern of the subject is known. Pure: times are arguments."""

from __future__ import annotations

from nats_backpressure.client.cached_admission import NEVER, WatchedState
from nats_backpressure.client.newest import put_newest
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.protocol.messages import State
from nats_backpressure.protocol.patterns import overlap

KEPT_SECONDS = 0.2
"""For which an order of the states is kept: so long a state that became stricter may not decide yet. What the deciding
state itself says always holds at once."""
MAX_PATTERNS = 1024
"""Patterns whose deciding state is kept until the next order; the oldest makes room."""


class StrictestStates:
    """All states, the strictest first. One order serves every pattern, whatever callers make up: to compute it is what
    costs, and each state that is written would change it."""

    def __init__(self, mirror: StateMirror) -> None:
        self._mirror = mirror
        self._order: list[WatchedState] = []
        self._until = NEVER
        self._deciding: dict[str, tuple[WatchedState, State] | None] = {}
        """By pattern, with what the state said then; None where none overlaps."""

    def deciding(self, pattern: str, now: float) -> WatchedState | None:
        """The strictest state that overlaps the pattern."""
        if now < self._until and pattern in self._deciding:
            if (kept := self._deciding[pattern]) is None:
                return None
            state, value = kept
            if state.value is value and self._mirror.states.get(state.subject) is state:
                return state
            self._until = NEVER
        if now >= self._until:
            self._order, self._until = self._ordered(now), now + KEPT_SECONDS
            self._deciding.clear()
        strictest = next((state for state in self._order if overlap(pattern, state.subject)), None)
        decided = None if strictest is None else (strictest, strictest.value)
        put_newest(self._deciding, pattern, decided, MAX_PATTERNS)
        return strictest

    def _ordered(self, now: float) -> list[WatchedState]:
        """Those that admit everything at any age are last, as they come: there are many, and all are the same."""
        decisions, calm = [], []
        for state in self._mirror.states.values():
            if _admits_everything(state.value):
                calm.append(state)
            else:
                decisions.append((self._mirror.decision(state, now).rank, state))
        decisions.sort(key=lambda decision: decision[0], reverse=True)
        return [state for _, state in decisions] + calm


def _admits_everything(value: State) -> bool:
    return value.action == "continue" and value.would in (None, "continue") and value.on_unknown != "reject"
