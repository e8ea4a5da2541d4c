"""What is stored in the state bucket: a state for each subject, and the heartbeat that proves them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Raw, Struct, field

from nats_backpressure.protocol.messages.fields import Amount, Count, Time
from nats_backpressure.protocol.messages.statuses import Status
from nats_backpressure.protocol.values import ActionName, BackoffStrategy, OnUnknown

SCHEMA = 1
"""Version of what is stored in the state bucket: of a state's `record`, and of the heartbeat."""


class Heartbeat(Struct, frozen=True):
    """Value of the key `=heartbeat` in the state bucket: the stored states were still true at `sampled_at`."""

    schema: Annotated[Count, Meta(description="Version of what is stored; no proof for states of a higher one.")] = 0
    instance: Annotated[str, Meta(description="The replica that wrote it.")] = ""
    sampled_at: Annotated[
        Time | None,
        Meta(
            description="When it last read a stream. It proves something only where this moved since its last "
            "heartbeat. null: it has read none yet."
        ),
    ] = None
    subjects: Annotated[Count, Meta(description="How many subjects are watched.")] = 0
    interval_ms: Annotated[Count, Meta(description="Longest time between two readings of a stream, in ms.")] = 0
    heartbeat_ms: Annotated[Count, Meta(description="Milliseconds to the next heartbeat.")] = 0
    stale_after_ms: Annotated[
        int, Meta(gt=0, description="Milliseconds without a proof after which a status is `stale`.")
    ] = 10_000
    unknown_after_ms: Annotated[
        int, Meta(gt=0, description="Milliseconds without a proof after which a status is `unknown`.")
    ] = 30_000
    leaving: Annotated[
        bool, Meta(description="The last replica stops: no sidecar checks from now on whether the states still hold.")
    ] = False


class State(Status, frozen=True, kw_only=True):
    """Value of a subject's key in the state bucket: its status, what a gateway needs, and one field of ours."""

    proof_age_ms: Annotated[
        Count | None,
        Meta(
            description="Milliseconds since its newest proof when it was written. null while `freshness` is `known`: "
            "heartbeats are its proof."
        ),
    ] = None
    action: Annotated[
        ActionName,
        Meta(
            description="What a gateway does: admit, admit `admit_ratio`, or refuse. Does not age in the bucket: the "
            "reader ages it."
        ),
    ]
    would: Annotated[
        ActionName | None,
        Meta(description="With `mode: observe`: the action that enforcement would have answered. Else null."),
    ] = None
    retry_after_seconds: Annotated[
        Count, Meta(description="For a refused caller: seconds before it tries again. 0 with `continue`.")
    ] = 0
    max_retry_attempts: Annotated[Count, Meta(description="How many attempts the policy allows a refused caller.")] = 0
    backoff_strategy: Annotated[BackoffStrategy, Meta(description="How the delay between attempts grows.")] = "constant"
    on_unknown: Annotated[
        OnUnknown, Meta(description="What a gateway does without proofs: `hold` the answer, then open; or one action.")
    ] = "hold"
    hold_seconds: Annotated[
        Amount, Meta(description="With `hold`: seconds after the last proof at which a refusal begins to open.")
    ] = 10.0
    epoch: Annotated[str, Meta(description="As in events.")] = ""
    seq: Annotated[Count, Meta(description="Of the newest event of the subject. 0 before the first.")] = 0
    schema: Annotated[Count, Meta(description="Version of what is stored; 0 in states of versions before 1.")] = 0
    record: Annotated[Raw, Meta(description="Ours, do not read: it may change with any version.")] = field(
        default_factory=Raw
    )

    @property
    def renewed(self) -> bool:
        """Whether heartbeats prove that it still holds. An override holds for as long as a sidecar is there to end it,
        whatever is known of the consumers."""
        return self.override is not None or (self.freshness == "known" and self.status != "unknown")
