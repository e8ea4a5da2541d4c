"""Maps each endpoint to the query that answers it, and counts and times the decisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.protocol.messages import Decision, Forgotten
from nats_backpressure.protocol.requests import RequestRefused
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.queries.decisions import DecisionService, validate_policy
from nats_backpressure.queries.history import HistoryQueries

Answer = Callable[[str, Any, str, Now], Any]
"""Takes the subject, the request, who asks, and when; returns the reply, or an awaitable of it."""


class DecisionMetrics(Protocol):
    """Counts decisions; `seconds` is how long one took."""

    def decision(self, subject: str, role: str, action: str, seconds: float, would: str | None) -> None: ...


class Dismissing(Protocol):
    """The subjects that are known, see SubjectRegistry."""

    @property
    def subjects(self) -> Mapping[str, SubjectState]: ...

    def dismiss(self, subject: str) -> bool: ...


def label(decision: Decision, decisions: DecisionService, now: Now) -> str:
    """The subject a decision is counted for: a watched one, the asked one or the one that decides. Names that callers
    invent must not fill the memory."""
    own = decision.subject in decision.matched[:1] or len(decision.matched) == 1
    return decision.matched[0] if own else decisions.shown(decision.subject, now).state.subject


def forgotten(registry: Dismissing, subject: str) -> Forgotten:
    """Have a subject without consumers removed. Raises RequestRefused where it has some, or is not known."""
    if subject not in registry.subjects:
        raise RequestRefused(404, f"{subject[:120]} is not watched")
    if not registry.dismiss(subject):
        raise RequestRefused(409, f"{subject[:120]} has consumers, or they cannot be read now: nothing is removed")
    return Forgotten(subject)


def answers(
    decisions: DecisionService, history: HistoryQueries, metrics: DecisionMetrics, registry: Dismissing
) -> Mapping[str, Answer]:
    """The answer of each endpoint, by its name."""

    def decide(function: Callable[..., Decision], subject: str, now: Now, *arguments: Any) -> Decision:
        """`arguments`: the request, and who asks."""
        started = time.perf_counter()
        decision = function(subject, *arguments, now)
        seconds = time.perf_counter() - started
        if not arguments[0].preview and not getattr(arguments[0], "leaving", False):
            metrics.decision(label(decision, decisions, now), decision.role, decision.action, seconds, decision.would)
        return decision

    return {
        "decide-gateway": lambda subject, request, _, now: decide(decisions.decide_gateway, subject, now, request),
        "decide-consumer": lambda subject, request, requester, now: decide(
            decisions.decide_consumer, subject, now, request, requester
        ),
        "status": lambda subject, _, __, now: decisions.status(subject, now),
        "status-list": lambda _, request, __, now: decisions.status_list(request, now),
        "policy": lambda subject, _, __, now: decisions.policy(subject, now),
        "validate-policy": lambda _, document, __, ___: validate_policy(document, decisions.guard),
        "forget": lambda subject, _, __, ___: forgotten(registry, subject),
        "events": lambda subject, request, _, now: history.events(subject, request, now),
        "history": lambda subject, request, _, now: history.history(subject, request, now),
        "metrics": lambda subject, request, _, now: history.metrics(subject, request, now),
        "recovery": lambda subject, _, __, now: history.recovery(subject, now),
        "alerts": lambda subject, _, __, now: history.alerts(subject, now),
        "alerts-list": lambda _, __, ___, now: history.alerts_list(now),
    }
