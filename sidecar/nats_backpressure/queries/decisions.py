"""What is said to whoever asks: which of the subjects a question is about decides, and the answer."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from msgspec.structs import replace

from nats_backpressure.core.admission import binary, pull_grants
from nats_backpressure.core.model import Admission, Member
from nats_backpressure.core.status.freshness import freshness
from nats_backpressure.policy import parse as policy
from nats_backpressure.policy.schema import Policy
from nats_backpressure.protocol import messages
from nats_backpressure.protocol.requests import ConsumerRequest, GatewayRequest, ListRequest
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Action, ConsumerKey, Freshness, Status
from nats_backpressure.queries import serialize
from nats_backpressure.queries.lookup import SubjectAnswer, SubjectLookup
from nats_backpressure.runtime.view import ServiceView

SHORTEST_VALID, LONGEST_VALID = 100, 5000
"""Milliseconds a gateway may reuse an answer, at least and at most."""
PULL_DESKS = 20_000
"""Consumers whose grants are remembered; beyond, the one that was first asked about is forgotten."""
MATCHED_SHOWN = 256
"""Matching subjects named in an answer; all of them are judged."""
LARGEST_LIST = 1024 * 1024
"""Bytes after which a list is not gone on with: no message is larger."""


class RequestRefused(Exception):
    """A question that has no answer: the service error's code, and what is wrong."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class DecisionService:
    """Answers from the book; `now` is when it was asked. Raises Refused."""

    def __init__(self, book: ServiceView) -> None:
        self._book = book
        self._prefix = Names(book.settings.name).prefix
        self._finder = SubjectLookup(book)
        self._pulls: dict[ConsumerKey, pull_grants.GrantTracker] = {}

    def decide_gateway(self, subject: str, request: GatewayRequest, now: Now) -> messages.Decision:
        findings = self._find(subject, now)
        decides, verdict = _strictest(findings, request.priority)
        delay = binary.retry_delay(decides.policy, request.attempt, verdict.retry_after)
        valid = 0 if decides.freshness is Freshness.UNKNOWN else self._valid_for(findings, now)
        return self._decision("gateway", subject, findings, decides, verdict, delay, valid)

    def decide_consumer(self, subject: str, request: ConsumerRequest, asker: str, now: Now) -> messages.Decision:
        findings = self._find(subject, now)
        names_one = request.stream is not None or request.consumer is not None
        members = ((f, m) for f in findings for m in (f.state.members.values() if names_one else f.view.fullest))
        chosen = [(f, m) for f, m in members if _named(m.key, request)]
        if not chosen and names_one:
            raise RequestRefused(404, f"no watched consumer of {subject[:120]} is named so")
        asked = request.max_messages
        enforced = [(f, m) for f, m in chosen if f.policy.mode == "enforce"]
        grant = self._grant(enforced, asked, asker, now)
        would = None
        if chosen and not enforced:
            would = _pull_action(self._grant(chosen, asked, asker, now).n, asked)
        verdict = Admission(_pull_action(grant.n, asked), would)
        decides, _ = _strictest([f for f, _ in chosen] or findings)
        room = messages.Pull(grant.n, round(1000 * grant.wait) if grant.n == 0 else 0)
        return self._decision("consumer", subject, findings, decides, verdict, pull_=room)

    def status(self, subject: str, now: Now) -> messages.Status:
        findings = self._find(subject, now)
        matched, keys, events = self._places(findings)
        found = self._status(_shown(subject, findings), now)
        return replace(found, subject=subject, matched=matched, state_keys=keys, event_subjects=events)

    def status_list(self, request: ListRequest, now: Now) -> messages.StatusList:
        self.observed()
        states = self._book.subjects
        names = sorted(states)
        shown: list[messages.Status] = []
        size = 0
        for name in names[request.offset : request.offset + request.limit]:
            shown.append(self._status(self._finder.finding(states[name], now), now))
            size += len(msgspec.json.encode(shown[-1]))
            if size > LARGEST_LIST:
                break
        end = request.offset + len(shown)
        return messages.StatusList(
            total=len(names),
            offset=request.offset,
            next_offset=end if end < len(names) else None,
            subjects=tuple(shown),
        )

    def policy(self, subject: str, now: Now) -> dict[str, Any]:
        findings = self._find(subject, now)
        state = _shown(subject, findings).state
        whole = self._book.rules.effective(state.subject)
        differing = []
        for key in sorted(state.members):
            own = self._book.rules.effective(state.subject, key)
            if own.policy != whole.policy:
                differing.append(
                    {**key._asdict(), "policy": policy.policy_document(own.policy, now), "sources": own.sources}
                )
        return {
            "subject": subject,
            "matched": self._places(findings)[0],
            "policy": policy.policy_document(whole.policy, now),
            "sources": whole.sources,
            "consumers": differing,
        }

    def shown(self, subject: str, now: Now) -> SubjectAnswer:
        """The watched subject whose status, events and the like answer a question."""
        return _shown(subject, self._find(subject, now))

    def alias(self, subject: str, now: Now) -> dict[str, Any]:
        """The router's established answer, in whole numbers as the router gives them; an unwatched subject is unknown,
        under the default policy."""
        try:
            found = self.shown(subject, now)
        except RequestRefused:
            word, fields, reading, marks = "unknown", Policy(), None, None
        else:
            word, fields, member = found.status.word, found.policy, found.member
            reading, marks = (member.reading, member.marks) if member else (None, None)
        overload = {"queue": fields.pending.overload, "latency": fields.latency_p95.overload}
        overload["inflight"] = fields.inflight.overload
        if marks:
            overload |= {"queue": marks.pending.overload, "latency": marks.latency.overload}
            overload["inflight"] = marks.inflight.overload if marks.inflight else overload["inflight"]
        return {
            "success": True,
            "data": {
                "subject": subject,
                "status": word,
                "metrics": {
                    # Where nothing was measured the router answers 0: that is the form of this answer.
                    "pending_messages": reading.pending if reading else None,
                    "latency_p95_ms": round(serialize.number(reading.p95) or 0.0) if reading else None,
                    "inflight_messages": reading.inflight or 0 if reading else None,
                },
                "thresholds": {
                    # Rounded down: a whole number is above 49 just where it is above 49.5.
                    "queue_overload": int(overload["queue"]),
                    "latency_overload_ms": int(overload["latency"]),
                    "inflight_overload": int(overload["inflight"]),
                },
                "policy": {
                    "retry_after_seconds": fields.retry_after_seconds,
                    "max_retry_attempts": fields.max_retry_attempts,
                },
                "timestamp": round(1000 * now.wall),
            },
        }

    def observed(self) -> None:
        if not self._book.observing:
            raise RequestRefused(503, "nothing is known yet: the first sweep is under way")

    def _find(self, subject: str, now: Now) -> list[SubjectAnswer]:
        self.observed()
        if findings := self._finder.find(subject, now):
            return findings
        if self._book.unread(subject):
            raise RequestRefused(
                503, f"nothing is known yet of {subject[:120]}: a stream that may hold it was not read"
            )
        raise RequestRefused(404, f"nobody watches {subject[:120]}")

    def _status(self, found: SubjectAnswer, now: Now) -> messages.Status:
        known = (found.freshness, found.stale_reason)
        return serialize.status(found.view, found.state.record, found.verdict, found.reasons, known, self._book, now)

    def _valid_for(self, findings: list[SubjectAnswer], now: Now) -> int:
        """Milliseconds to the next planned reading of anything the answer rests on, or until it opens by its age."""
        left = min(min(self._book.next_reading(f.state.subject), f.changes) for f in findings) - now.mono
        return round(1000 * min(LONGEST_VALID / 1000, max(SHORTEST_VALID / 1000, left)))

    def _grant(self, chosen: list[tuple[SubjectAnswer, Member]], asked: int, asker: str, now: Now) -> pull_grants.Grant:
        """The least of what the consumers have room for; whichever it is for, it is counted with each of them."""
        least, desks = pull_grants.Grant(asked, 0.0), {}
        for found, member in chosen:
            blind = found.freshness is Freshness.UNKNOWN or found.stale_reason == "no_quorum"
            if blind or freshness(member.proof, now.mono, found.limits) is not Freshness.KNOWN:
                continue
            desk = desks[member.key] = self._pull_desk(member.key)
            one = desk.offer(member, asked, asker, now.mono, 1, random.random())
            least = min(least, one, key=lambda grant: (grant.n, -grant.wait))
        for desk in desks.values():
            desk.add(least.n, asker, now.mono)
        return least

    def _pull_desk(self, key: ConsumerKey) -> pull_grants.GrantTracker:
        desk = self._pulls.pop(key, None) or pull_grants.GrantTracker()
        if len(self._pulls) >= PULL_DESKS:
            del self._pulls[next(iter(self._pulls))]
        self._pulls[key] = desk
        return desk

    def _places(self, findings: list[SubjectAnswer]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        matched = tuple(f.state.subject for f in findings[:MATCHED_SHOWN])
        both = [serialize.places(self._prefix, name) for name in matched]
        return matched, tuple([key for key, _ in both]), tuple([event for _, event in both])

    def _decision(
        self,
        role: messages.Role,
        subject: str,
        findings: list[SubjectAnswer],
        decides: SubjectAnswer,
        verdict: Admission,
        retry_delay_ms: int | None = None,
        valid_for_ms: int = 0,
        pull_: messages.Pull | None = None,
    ) -> messages.Decision:
        matched, keys, events = self._places(findings)
        fields, record = decides.policy, decides.state.record
        unknown = decides.status is Status.UNKNOWN
        return messages.Decision(
            subject=subject,
            matched=matched,
            role=role,
            status=decides.status.word,
            action=verdict.action.value,
            reasons=decides.reasons,
            pressure=None if unknown else serialize.number(decides.pressure, 3),
            retry_after_seconds=verdict.retry_after,
            max_retry_attempts=fields.max_retry_attempts,
            backoff_strategy=fields.backoff_strategy,
            retry_delay_ms=retry_delay_ms,
            admit_ratio=verdict.admit_ratio,
            pull=pull_,
            alert=_alerts(fields, decides.status),
            would=verdict.would.value if verdict.would else None,
            freshness=decides.freshness.value,
            sampled_at=serialize.moment(decides.view.sampled_at),
            valid_for_ms=valid_for_ms,
            incident=record.incident if record else None,
            state_keys=keys,
            event_subjects=events,
        )


def validate_policy(found: dict[str, Any]) -> dict[str, Any]:
    """Whether a policy document could be put in force, over the default."""
    problems, effective = policy.validate_document(found)
    errors = [{"path": p.path, "message": p.message} for p in problems]
    return {"valid": not errors, "errors": errors, "effective": effective}


def _strictest(findings: list[SubjectAnswer], priority: binary.Priority = "normal") -> tuple[SubjectAnswer, Admission]:
    """Which of several decides, and what it answers to a request of this priority; of equals the first one."""
    answers = [(f, binary.for_priority(f.verdict, f.policy, priority)) for f in findings]
    return max(answers, key=lambda answer: answer[0].rank(answer[1])) if len(answers) > 1 else answers[0]


def _shown(subject: str, findings: list[SubjectAnswer]) -> SubjectAnswer:
    """A subject that is itself watched is shown as it is, whatever else covers it; of others the one that decides."""
    return findings[0] if findings[0].state.subject == subject else _strictest(findings)[0]


def _alerts(fields: Policy, status: Status) -> bool:
    return (status is Status.ACTIVE and fields.alert_on_active) or (
        status is Status.WARNING and fields.alert_on_warning
    )


def _named(key: ConsumerKey, request: ConsumerRequest) -> bool:
    return request.stream in (None, key.stream) and request.consumer in (None, key.consumer)


def _pull_action(n: int, asked: int) -> Action:
    return Action.REJECT if n == 0 else Action.THROTTLE if n < asked else Action.CONTINUE
