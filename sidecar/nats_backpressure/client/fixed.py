"""What BackpressureClient.fixed decides by, in the tests of an application: one state for all, and the same answers."""

from __future__ import annotations

import math
from typing import Any

from nats_backpressure.client.inbox import Inbox
from nats_backpressure.client.requests import Answer, RequestSender
from nats_backpressure.protocol.messages import Pull, State
from nats_backpressure.protocol.values import ActionName, Role, StatusName

EVERYTHING = ">"
STATUS: dict[ActionName, StatusName] = {"continue": "inactive", "throttle": "warning", "reject": "active"}
RATIO: dict[ActionName, float] = {"continue": 1.0, "throttle": 0.5, "reject": 0.0}
WAIT_MS = 100
"""For a consumer that is granted nothing."""


def fixed_state(action: ActionName, admit_ratio: float | None, retry_after_seconds: int) -> State:
    """The state of all subjects; without a ratio that of the action. Raises ValueError for an action that there is not,
    and for a ratio that is beyond 0 to 1, or does not go with the action."""
    if action not in STATUS:
        raise ValueError(f"the action {action!r} is none of {', '.join(STATUS)}")
    ratio = RATIO[action] if admit_ratio is None else admit_ratio
    if not 0 <= ratio <= 1:
        raise ValueError(f"admit_ratio must be from 0 to 1, not {ratio}")
    if action != "throttle" and ratio != RATIO[action]:
        raise ValueError(f"{action!r} has no admit_ratio of {ratio}: a share goes with the action 'throttle'")
    wait = 0 if action == "continue" else retry_after_seconds
    return State(
        EVERYTHING, STATUS[action], action=action, admit_ratio=ratio, retry_after_seconds=wait, freshness="known"
    )


class FixedAnswers(RequestSender):
    """Answers from the state, without a request."""

    def fix(self, state: State) -> None:
        self._state = state

    async def decide(
        self, subject: str, role: Role, fields: dict[str, Any], timeout: float, inbox: Inbox | None = None
    ) -> Answer:
        self._stats.count("asked", subject)
        state = self._state
        pull, action = None, state.action
        if role == "consumer":
            wanted = fields["max_messages"]
            n = math.ceil(state.admit_ratio * wanted)
            pull = Pull(n, 0 if n else WAIT_MS)
            action = "reject" if n == 0 else "throttle" if n < wanted else "continue"  # as the sidecar
        elif fields["priority"] == "critical":
            action = "continue"
        refused = role == "gateway" and action != "continue"
        return Answer(
            subject,
            role,
            status=state.status,
            action=action,
            admit_ratio=state.admit_ratio if refused else 1.0,
            retry_after_seconds=state.retry_after_seconds if refused else 0,
            freshness="known",
            pull=pull,
        )
