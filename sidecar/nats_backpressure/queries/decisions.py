"""Answers requests for decisions, statuses and policies; if several watched subjects match, the strictest decides."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from nats_backpressure.core.admission import gateway_admission
from nats_backpressure.core.model.admission import GatewayAdmission
from nats_backpressure.policy import external
from nats_backpressure.policy import parse as policy
from nats_backpressure.policy.schema import Guard, Policy
from nats_backpressure.protocol import messages, status_alias
from nats_backpressure.protocol.policies import ConsumerPolicy, EffectivePolicy, PolicyValidation
from nats_backpressure.protocol.requests import ConsumerRequest, GatewayRequest, ListRequest, RequestRefused
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import Freshness, Role, Status
from nats_backpressure.queries import serialize
from nats_backpressure.queries.lookup import SubjectAnswer, SubjectLookup
from nats_backpressure.queries.pulls import Granted, PullGrants, PullRequest, pull_action, pull_request
from nats_backpressure.runtime.ports import Clock
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.view import ServiceView

SHORTEST_VALID, LONGEST_VALID = 0.1, 5.0
"""Seconds for which a gateway may reuse a decision, at least and at most."""
MATCHED_SHOWN = 256
"""Matching subjects listed in a reply; all of them are evaluated."""
LARGEST_LIST = 1024 * 1024
"""Bytes after which a page of statuses ends: no message is larger."""


NORMAL = GatewayRequest()

Texts = tuple[str, ...]


class GatewayChoice(NamedTuple):
    """What a decision for a gateway depends on, besides the answers."""

    decisive: int
    """The position of the answer that decides."""
    admission: GatewayAdmission
    retry_delay_ms: int | None


class DecisionService:
    """Answers from the states in memory; `now` is the time of the request. Raises RequestRefused."""

    def __init__(self, service: ServiceView, clock: Clock) -> None:
        self._service, self._clock = service, clock
        self._prefix = Names(service.settings.name).prefix
        self.lookup = SubjectLookup(service)
        self.grants = PullGrants(clock.random)

    def decide_gateway(self, subject: str, request: GatewayRequest, now: Now) -> messages.Decision:
        answers = self.find(subject, now)
        choice = gateway_choice(answers, request)
        valid = milliseconds_valid(self.valid_until(answers, choice.decisive), now.mono)
        return self.gateway_decision(subject, answers, choice, valid)

    def gateway_decision(
        self, subject: str, answers: list[SubjectAnswer], choice: GatewayChoice, valid_for_ms: int = 0
    ) -> messages.Decision:
        decisive = answers[choice.decisive]
        return self._decision(
            "gateway", subject, answers, decisive, choice.admission, choice.retry_delay_ms, valid_for_ms
        )

    @property
    def guard(self) -> Guard:
        """What the settings file allows policies of the bucket."""
        return self._service.policies.sources.guard

    def decide_consumer(self, subject: str, request: ConsumerRequest, client: str, now: Now) -> messages.Decision:
        answers = self.find(subject, now)
        pull = pull_request(subject, answers, request, now)
        grant = self.grants.preview if request.preview else self.grants.grant
        return self.consumer_decision(subject, answers, pull, grant(pull, client, now.mono))

    def consumer_decision(
        self, subject: str, answers: list[SubjectAnswer], pull: PullRequest, granted: Granted
    ) -> messages.Decision:
        admission = GatewayAdmission(pull_action(granted.n, pull.asked.max_messages), granted.would)
        decisive = _strictest(pull.chosen or answers)
        return self._decision(
            "consumer", subject, answers, decisive, admission, pull_=messages.Pull(granted.n, granted.wait_ms)
        )

    def status(self, subject: str, now: Now) -> messages.Status:
        answers = self.find(subject, now)
        matched, keys, events = self._keys_and_subjects(answers)
        status = self._status(_choose_shown(subject, answers), now)
        return replace(status, subject=subject, matched=matched, state_keys=keys, event_subjects=events)

    async def status_list(self, request: ListRequest, now: Now) -> messages.StatusList:
        """Built in slices, since a page of 1,000 takes 50 ms. A subject that is dropped meanwhile is left out."""
        self.require_observed()
        states, slices = self._service.subjects, Slices(self._clock)
        names = sorted(states)
        shown: list[messages.Status] = []
        size, end = 0, request.offset
        for name in names[request.offset : request.offset + request.limit]:
            await slices.pause()
            end += 1
            if (state := states.get(name)) is None:
                continue
            shown.append(self._status(self.lookup.answer(state, now), now))
            size += len(msgspec.json.encode(shown[-1]))
            if size > LARGEST_LIST:
                break
        return messages.StatusList(
            total=len(names),
            offset=request.offset,
            next_offset=end if end < len(names) else None,
            subjects=tuple(shown),
        )

    def policy(self, subject: str, now: Now) -> EffectivePolicy:
        answers = self.find(subject, now)
        state = _choose_shown(subject, answers).state
        whole = self._service.policies.effective(state.subject)
        differing = []
        for key in sorted(state.members):
            own = self._service.policies.effective(state.subject, key)
            if own.policy != whole.policy:
                differing.append(ConsumerPolicy(*key, policy.policy_document(own.policy, now), own.sources))
        return EffectivePolicy(
            subject=subject,
            matched=self._keys_and_subjects(answers)[0],
            policy=policy.policy_document(whole.policy, now),
            sources=whole.sources,
            consumers=tuple(differing),
        )

    def shown(self, subject: str, now: Now) -> SubjectAnswer:
        """The watched subject whose status, events or metrics are returned for this subject."""
        return _choose_shown(subject, self.find(subject, now))

    def alias(self, subject: str, now: Now) -> status_alias.AliasReply:
        """The reply in the router's existing format, in whole numbers as the router gives them. An unwatched subject is
        unknown, with the default policy."""
        try:
            answer = self.shown(subject, now)
        except RequestRefused:
            status, fields, reading, marks = Status.UNKNOWN, Policy(), None, None
        else:
            status, fields, member = answer.status, answer.policy, answer.member
            reading, marks = (member.reading, member.marks) if member else (None, None)
        overload = {"queue": fields.pending.overload, "latency": fields.latency_p95.overload}
        overload["inflight"] = fields.inflight.overload
        if marks:
            overload |= {"queue": marks.pending.overload, "latency": marks.latency.overload}
            overload["inflight"] = marks.inflight.overload if marks.inflight else overload["inflight"]
        return status_alias.AliasReply(
            True,
            status_alias.AliasStatus(
                subject,
                status.word,
                # The router replies 0 where nothing was measured.
                status_alias.AliasMetrics(
                    reading.pending,
                    round(serialize.round_finite(reading.p95) or 0.0),
                    reading.inflight or 0,
                )
                if reading
                else status_alias.AliasMetrics(),
                # Rounded down: a whole number is above 49 exactly if it is above 49.5.
                status_alias.AliasThresholds(
                    int(overload["queue"]), int(overload["latency"]), int(overload["inflight"])
                ),
                status_alias.AliasPolicy(fields.retry_after_seconds, fields.max_retry_attempts),
                round(1000 * now.wall),
            ),
        )

    def require_observed(self) -> None:
        """Raises RequestRefused until every stream was read or tried once."""
        if not self._service.observing:
            raise RequestRefused(503, "nothing is known yet: the streams are being read for the first time")

    def find(self, subject: str, now: Now) -> list[SubjectAnswer]:
        """The answers of all watched subjects that match, the subject itself first. Raises RequestRefused."""
        return self.lookup.answers(self.names(subject), now)

    def names(self, subject: str) -> list[str]:
        """The watched subjects that match, the subject itself first. Raises RequestRefused."""
        self.require_observed()
        if names := self.lookup.names(subject):
            return names
        if self._service.unread(subject):
            why = "a stream that may have its consumers was not read yet"
            raise RequestRefused(503, f"nothing is known yet about {subject[:120]}: {why}")
        raise RequestRefused(404, f"{subject[:120]} is not watched")

    def _status(self, answer: SubjectAnswer, now: Now) -> messages.Status:
        freshness = (answer.freshness, answer.stale_reason)
        record, reasons = answer.state.record, answer.reasons
        return serialize.status_message(answer.view, record, answer.admission, reasons, freshness, self._service, now)

    def valid_until(self, answers: list[SubjectAnswer], decisive: int) -> float:
        """Monotonic time of the next planned reading of a stream it depends on, or at which age changes the decision;
        -inf while the answer that decides is unknown."""
        if answers[decisive].freshness is Freshness.UNKNOWN:
            return -math.inf
        return min([min(self._service.next_reading(a.state.subject), a.changes_at) for a in answers])

    def _keys_and_subjects(self, answers: list[SubjectAnswer]) -> tuple[Texts, Texts, Texts]:
        """The matched subjects, their state keys and their event subjects."""
        matched = tuple(a.state.subject for a in answers[:MATCHED_SHOWN])
        both = [serialize.state_key_and_event_subject(self._prefix, name) for name in matched]
        return matched, tuple([key for key, _ in both]), tuple([event for _, event in both])

    def _decision(
        self,
        role: Role,
        subject: str,
        answers: list[SubjectAnswer],
        decisive: SubjectAnswer,
        admission: GatewayAdmission,
        retry_delay_ms: int | None = None,
        valid_for_ms: int = 0,
        pull_: messages.Pull | None = None,
    ) -> messages.Decision:
        matched, keys, events = self._keys_and_subjects(answers)
        fields, record = decisive.policy, decisive.state.record
        unknown = decisive.status is Status.UNKNOWN
        return messages.Decision(
            subject=subject,
            matched=matched,
            role=role,
            status=decisive.status.word,
            action=admission.action.value,
            reasons=decisive.reasons,
            pressure=None if unknown else serialize.round_finite(decisive.pressure, 3),
            retry_after_seconds=admission.retry_after,
            max_retry_attempts=fields.max_retry_attempts,
            backoff_strategy=fields.backoff_strategy,
            retry_delay_ms=retry_delay_ms,
            admit_ratio=admission.admit_ratio,
            pull=pull_,
            alert=_wants_alert(fields, decisive.status),
            would=admission.would.value if admission.would else None,
            freshness=decisive.freshness.value,
            sampled_at=serialize.format_time(decisive.view.sampled_at),
            valid_for_ms=valid_for_ms,
            incident=record.incident if record else None,
            state_keys=keys,
            event_subjects=events,
        )


def validate_policy(document: dict[str, Any], guard: Guard) -> PolicyValidation:
    """Whether a policy could be put in force, its mistakes, and what it would be over the default policy."""
    problems, effective = external.validate_document(document, guard)
    errors = tuple(messages.Problem(problem.path, problem.message) for problem in problems)
    return PolicyValidation(not errors, errors, effective)


def milliseconds_valid(until: float, now: float) -> int:
    """Milliseconds for which a gateway may reuse a decision, from its `valid_until`."""
    if until == -math.inf:
        return 0
    seconds = until - now
    return round(1000 * (SHORTEST_VALID if seconds < SHORTEST_VALID else min(seconds, LONGEST_VALID)))


def gateway_choice(answers: list[SubjectAnswer], request: GatewayRequest) -> GatewayChoice:
    """The strictest answer to a request of this priority decides; the first of equal ones."""
    admissions = [gateway_admission.for_priority(a.admission, a.policy, request.priority) for a in answers]
    decisive = 0
    if len(answers) > 1:
        decisive = max(range(len(answers)), key=lambda n: answers[n].rank(admissions[n]))
    policy, admission = answers[decisive].policy, admissions[decisive]
    return GatewayChoice(
        decisive, admission, gateway_admission.retry_delay(policy, request.attempt, admission.retry_after)
    )


def _strictest(answers: list[SubjectAnswer]) -> SubjectAnswer:
    """The strictest answer to a request of normal priority."""
    return answers[gateway_choice(answers, NORMAL).decisive]


def _choose_shown(subject: str, answers: list[SubjectAnswer]) -> SubjectAnswer:
    """The subject itself if it is watched, whatever else covers it; otherwise the strictest that covers it."""
    return answers[0] if answers[0].state.subject == subject else _strictest(answers)


def _wants_alert(fields: Policy, status: Status) -> bool:
    return (status is Status.ACTIVE and fields.alert_on_active) or (
        status is Status.WARNING and fields.alert_on_warning
    )
