"""What is said to whoever asks: which subjects a question is about, which of them decides, and the answer."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from msgspec.structs import replace

from sidecar import render
from sidecar.book import Book
from sidecar.core import admission, policy, pull
from sidecar.core.changes import proof, worst
from sidecar.core.model import Action, ConsumerKey, Freshness, Now, Status
from sidecar.core.patterns import covers
from sidecar.core.rules import Policy
from sidecar.core.state import Member, SubjectState, Verdict
from sidecar.wire import messages
from sidecar.wire.requests import ConsumerRequest, GatewayRequest, ListRequest
from sidecar.wire.subjects import Names, is_literal

STRICTNESS = {Action.CONTINUE: 0, Action.THROTTLE: 1, Action.REJECT: 2}
SHORTEST_VALID, LONGEST_VALID = 100, 5000
"""Milliseconds a gateway may reuse an answer, at least and at most."""
PULL_DESKS = 20_000
"""Consumers whose grants are remembered; at the limit all are forgotten, and counted anew within a second."""


class Refused(Exception):
    """A question that has no answer: the service error's code, and what is wrong."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Finding(msgspec.Struct, frozen=True):
    """One matching subject, ready to be ranked."""

    state: SubjectState
    policy: Policy
    status: Status
    freshness: Freshness
    stale_reason: str | None
    verdict: Verdict
    pressure: float

    @property
    def rank(self) -> tuple[int, int, float, bool]:
        """The strictest action decides, then status, then pressure; enforcing before observing."""
        return (STRICTNESS[self.verdict.action], self.status, self.pressure, self.policy.mode == "enforce")


class Desk:
    """Answers from the book; `now` is when it was asked. Raises Refused."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._names = Names(book.settings.name)
        self._pulls: dict[ConsumerKey, pull.Desk] = {}

    def decide_gateway(self, subject: str, request: GatewayRequest, now: Now) -> messages.Decision:
        findings = self._find(subject, now)
        worst_ = max(findings, key=lambda f: f.rank)
        verdict = worst_.verdict
        if request.priority == "critical":
            verdict = Verdict(would=verdict.would)
        known = worst_.freshness is not Freshness.UNKNOWN
        left = 1000 * (self._book.next_reading(worst_.state.subject) - now.mono)
        decision = self._decision("gateway", subject, findings, worst_, verdict)
        return replace(
            decision,
            retry_after_seconds=verdict.retry_after,
            retry_delay_ms=admission.retry_delay(worst_.policy, request.attempt, verdict.retry_after),
            valid_for_ms=round(min(LONGEST_VALID, max(SHORTEST_VALID, left))) if known else 0,
        )

    def decide_consumer(self, subject: str, request: ConsumerRequest, asker: str, now: Now) -> messages.Decision:
        findings = self._find(subject, now)
        chosen = [(f, m) for f in findings for m in f.state.members.values() if _named(m.key, request)]
        if not chosen and (request.stream or request.consumer):
            raise Refused(404, f"no watched consumer of {subject} is named so")
        worst_ = max(findings, key=lambda f: f.rank)
        asked = request.max_messages
        grants = [self._grant(f, m, asked, asker, now) for f, m in chosen if f.policy.mode == "enforce"]
        grant = min(grants, key=lambda g: (g.n, -g.wait), default=pull.Grant(asked, 0.0))
        observed = [f for f, _ in chosen if f.policy.mode == "observe"]
        action = Action.REJECT if grant.n == 0 else Action.THROTTLE if grant.n < asked else Action.CONTINUE
        would = None if grants or not observed else self._would(chosen, asked, asker, now)
        decision = self._decision("consumer", subject, findings, worst_, Verdict(action, would))
        return replace(decision, pull=messages.Pull(grant.n, round(1000 * grant.wait) if grant.n == 0 else 0))

    def status(self, subject: str, now: Now) -> messages.Status:
        findings = self._find(subject, now)
        worst_ = max(findings, key=lambda f: f.rank)
        found = self._status(worst_, now)
        matched, keys, events = self._places(findings)
        return replace(found, subject=subject, matched=matched, state_keys=keys, event_subjects=events)

    def status_list(self, request: ListRequest, now: Now) -> messages.StatusList:
        self._observed()
        names = sorted(self._book.subjects)
        page = names[request.offset : request.offset + request.limit]
        end = request.offset + len(page)
        found = (self._finding(self._book.subjects[name], now) for name in page)
        return messages.StatusList(
            total=len(names),
            offset=request.offset,
            next_offset=end if end < len(names) else None,
            subjects=tuple(self._status(f, now) for f in found),
        )

    def _status(self, finding: Finding, now: Now) -> messages.Status:
        age = (finding.freshness, finding.stale_reason)
        return render.status(finding.state, finding.verdict, age, self._book, now)

    def policy(self, subject: str, now: Now) -> dict[str, Any]:
        findings = self._find(subject, now)
        state = max(findings, key=lambda f: f.rank).state
        whole = policy.effective(self._book.layers, state.subject, None)
        differing = []
        for key in sorted(state.members):
            own = policy.effective(self._book.layers, state.subject, key.consumer)
            if own.policy != whole.policy:
                differing.append({**key._asdict(), "policy": policy.plain(own.policy), "sources": own.sources})
        return {
            "subject": subject,
            "matched": [f.state.subject for f in findings],
            "policy": policy.plain(whole.policy),
            "sources": whole.sources,
            "consumers": differing,
        }

    def alias(self, subject: str, now: Now) -> dict[str, Any]:
        """The router's established answer; an unwatched subject is unknown, under the default policy."""
        try:
            found = self.status(subject, now)
        except Refused:
            found, fields = None, Policy()
        else:
            fields = max(self._find(subject, now), key=lambda f: f.rank).policy
        numbers = found.metrics if found else messages.Metrics()
        marks = found.thresholds if found else None
        shown = ("pending_messages", "latency_p95_ms", "inflight_messages")
        return {
            "success": True,
            "data": {
                "subject": subject,
                "status": found.status if found else "unknown",
                "metrics": {name: getattr(numbers, name) for name in shown},
                "thresholds": {
                    "queue_overload": marks.queue_overload if marks else fields.pending.overload,
                    "latency_overload_ms": marks.latency_overload_ms if marks else fields.latency_p95.overload,
                    "inflight_overload": marks.inflight_overload if marks else fields.inflight.overload,
                },
                "policy": {
                    "retry_after_seconds": fields.retry_after_seconds,
                    "max_retry_attempts": fields.max_retry_attempts,
                },
                "timestamp": round(1000 * now.wall),
            },
        }

    def _observed(self) -> None:
        if self._book.swept_at is None:
            raise Refused(503, "nothing is known yet: the first sweep is under way")

    def _find(self, subject: str, now: Now) -> list[Finding]:
        """Every watched subject the question is about, by name. An encoded wildcard is about itself alone."""
        self._observed()
        states = self._book.subjects
        names = {subject} if subject in states else set()
        if self._book.wildcards and is_literal(subject):
            names |= {name for name in self._book.wildcards if covers(name, subject)}
        if not names:
            raise Refused(404, f"nobody watches {subject[:120]}")
        return [self._finding(states[name], now) for name in sorted(names)]

    def _finding(self, state: SubjectState, now: Now) -> Finding:
        member = worst(state.members.values())
        fields = member.policy if member else state.policy
        fresh, why = render.fresh(state, self._book, now)
        record = state.record
        if record is None:
            return Finding(state, fields, Status.UNKNOWN, Freshness.UNKNOWN, None, Verdict(), 0.0)
        bounds = render.bounds(state, self._book)
        verdict = admission.verdict(fields, record.status, fresh, record.verdict, proof(state), now.mono, bounds)
        unknown = fresh is Freshness.UNKNOWN
        pressure = member.pressure if member else 0.0
        status = Status.UNKNOWN if unknown else record.status
        return Finding(state, fields, status, fresh, why, verdict, pressure)

    def _grant(self, finding: Finding, member: Member, asked: int, asker: str, now: Now) -> pull.Grant:
        if finding.freshness is not Freshness.KNOWN or member.proof is None:
            return pull.Grant(asked, 0.0)
        if len(self._pulls) >= PULL_DESKS:
            self._pulls.clear()
        desk = self._pulls.setdefault(member.key, pull.Desk())
        return desk.grant(member, asked, asker, now.mono, 1, random.random())

    def _would(self, chosen: list[tuple[Finding, Member]], asked: int, asker: str, now: Now) -> Action:
        n = min(self._grant(f, m, asked, asker, now).n for f, m in chosen)
        return Action.REJECT if n == 0 else Action.THROTTLE if n < asked else Action.CONTINUE

    def _places(self, findings: list[Finding]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        matched = tuple(f.state.subject for f in findings)
        both = [render.places(self._names.prefix, name) for name in matched]
        return matched, tuple(key for key, _ in both), tuple(event for _, event in both)

    def _decision(
        self, role: messages.Role, subject: str, findings: list[Finding], worst_: Finding, verdict: Verdict
    ) -> messages.Decision:
        """The fields all roles share."""
        matched, keys, events = self._places(findings)
        fields, record = worst_.policy, worst_.state.record
        unknown = worst_.status is Status.UNKNOWN
        member = worst(worst_.state.members.values())
        reading = member.reading if member else None
        alert = {Status.ACTIVE: fields.alert_on_active, Status.WARNING: fields.alert_on_warning}
        return messages.Decision(
            subject=subject,
            matched=matched,
            role=role,
            status=worst_.status.word,
            action=verdict.action.value,
            reasons=() if unknown or record is None else record.reasons,
            pressure=None if unknown else render.number(worst_.pressure, 3),
            retry_after_seconds=0,
            max_retry_attempts=fields.max_retry_attempts,
            backoff_strategy=fields.backoff_strategy,
            retry_delay_ms=None,
            admit_ratio=verdict.admit_ratio,
            pull=None,
            alert=alert.get(worst_.status, False),
            would=verdict.would.value if verdict.would else None,
            freshness=worst_.freshness.value,
            sampled_at=render.moment(reading.at.wall) if reading else None,
            valid_for_ms=0,
            incident=record.incident if record else None,
            state_keys=keys,
            event_subjects=events,
        )


def validate_policy(found: dict[str, Any]) -> dict[str, Any]:
    """Whether a policy document could be put in force, over the default."""
    problems, effective = policy.validate_document(found)
    errors = [{"path": p.path, "message": p.message} for p in problems]
    return {"valid": not errors, "errors": errors, "effective": effective}


def _named(key: ConsumerKey, request: ConsumerRequest) -> bool:
    return request.stream in (None, key.stream) and request.consumer in (None, key.consumer)
