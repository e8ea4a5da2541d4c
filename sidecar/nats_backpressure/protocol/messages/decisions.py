"""The answers to `decide.gateway` and `decide.consumer`."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from nats_backpressure.protocol.messages.fields import Amount, Count, Ratio, Subject, Time
from nats_backpressure.protocol.values import ActionName, BackoffStrategy, FreshnessName, Role, StatusName


class Pull(Struct, frozen=True):
    """How much a consumer may pull now."""

    max_messages: Annotated[Count, Meta(description="Messages that may be pulled now. 0: none.")]
    wait_ms: Annotated[
        Count, Meta(description="Milliseconds to wait before the next request, after a 0. 0 after a grant.")
    ] = 0


class Decision(Struct, frozen=True):
    """The answer to `decide.gateway` and `decide.consumer`."""

    subject: Annotated[Subject, Meta(description="The subject that was asked about.")]
    role: Annotated[Role, Meta(description="Which of the two endpoints answered.")]
    status: Annotated[StatusName, Meta(description="Status of the subject that decides.")] = "unknown"
    action: Annotated[
        ActionName,
        Meta(
            description="What to do. A gateway: admit, admit the share `admit_ratio`, or refuse. A consumer: `reject` "
            "exactly when `pull.max_messages` is 0, `throttle` when it is less than was asked for."
        ),
    ] = "continue"
    reasons: Annotated[
        tuple[str, ...],
        Meta(
            description="Why the status is what it is: signals whose latch is set (`pending`, `inflight`, "
            "`latency_p95`, `drain`), a diagnosis that counts as one, `shedding`."
        ),
    ] = ()
    pressure: Annotated[
        Amount | None,
        Meta(description="Largest value divided by its overload mark; above 1 is overload. null while unknown."),
    ] = None
    retry_after_seconds: Annotated[
        Count, Meta(description="For a refused caller: seconds before it tries again. 0 with `continue`.")
    ] = 0
    max_retry_attempts: Annotated[Count, Meta(description="How many attempts the policy allows a refused caller.")] = 0
    backoff_strategy: Annotated[BackoffStrategy, Meta(description="How `retry_delay_ms` grows with the attempt.")] = (
        "constant"
    )
    retry_delay_ms: Annotated[
        Count | None,
        Meta(
            description="Milliseconds before the next attempt, for the `attempt` of the request, without jitter. null "
            "after the last attempt, and where nothing is to be retried."
        ),
    ] = None
    admit_ratio: Annotated[
        Ratio,
        Meta(
            description="Share of the requests to admit: 1 `continue`, 0 `reject`. For a gateway; in an answer to a "
            "consumer it has no meaning (`pull` counts)."
        ),
    ] = 1.0
    pull: Annotated[Pull | None, Meta(description="For the role consumer: what may be pulled. null for a gateway.")] = (
        None
    )
    alert: Annotated[bool, Meta(description="Whether the policy asks for an alert in this status.")] = False
    would: Annotated[
        ActionName | None,
        Meta(description="With `mode: observe`: the action that enforcement would have answered. Else null."),
    ] = None
    freshness: Annotated[
        FreshnessName, Meta(description="Whether the status is proven: `known`, `stale` or `unknown`.")
    ] = "unknown"
    sampled_at: Annotated[
        Time | None,
        Meta(
            description="When all behind the answer was last proved: the oldest of its consumers counts. null: never."
        ),
    ] = None
    valid_for_ms: Annotated[
        Count,
        Meta(description="Milliseconds for which a gateway may reuse the answer. 0: not at all, as for every grant."),
    ] = 0
    incident: Annotated[
        str | None, Meta(description="Id of the incident: shared by all events from a rise to the return to inactive.")
    ] = None
    matched: Annotated[
        tuple[str, ...],
        Meta(description="The watched subjects that the request matched, at most 256, the asked one first."),
    ] = ()
    state_keys: Annotated[
        tuple[str, ...], Meta(description="Their keys in the state bucket, in the same order: what to watch.")
    ] = ()
    event_subjects: Annotated[
        tuple[str, ...], Meta(description="Where their events are published, in the same order: what to subscribe to.")
    ] = ()
