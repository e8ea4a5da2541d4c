"""What is published to the event stream."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, field

from nats_backpressure.protocol.messages.fields import Amount, Count, Ratio, Time
from nats_backpressure.protocol.messages.statuses import Metrics, Override, Thresholds
from nats_backpressure.protocol.values import AlertState, DiagnosisName, EventTypeName, KnownStatusName


class AlertChange(Struct, frozen=True):
    """An alert, as it is now."""

    name: Annotated[str, Meta(description="Its name in the policy.")]
    severity: Annotated[str, Meta(description="Its severity in the policy.")]
    state: Annotated[
        AlertState, Meta(description="`pending`: its condition holds, but not long enough yet for `firing`.")
    ]
    when: Annotated[str, Meta(description="Its condition, such as `pending_above: 5000`.")]
    value: Annotated[int | float | str | None, Meta(description="The value that was compared. null: not known.")]
    since: Annotated[Time, Meta(description="When it got this `state`.")]


class Problem(Struct, frozen=True):
    """One thing that is wrong with a policy."""

    path: Annotated[str, Meta(description="Where, such as `pending.warn`. Empty: the whole document.")]
    message: Annotated[str, Meta(description="What is wrong there.")]


class Event(Struct, frozen=True):
    """Something that happened to a subject; published once for each change, in the order of `seq`."""

    id: Annotated[str, Meta(description="`<encoded subject>:<epoch>:<seq>`, also the header `Nats-Msg-Id`.")]
    type: Annotated[EventTypeName, Meta(description="What happened.")]
    subject: Annotated[
        str,
        Meta(
            description="The watched subject; with `policy_rejected` the decoded key: a subject or pattern, for an "
            "override `=override.<subject or pattern>`."
        ),
    ]
    timestamp: Annotated[Time, Meta(description="When the sidecar concluded it.")]
    epoch: Annotated[
        str, Meta(description="Changes only when the stored state was lost; `seq` then goes on from the stream's last.")
    ]
    seq: Annotated[int, Meta(ge=1, description="Rises by one per subject, without a gap.")]
    incident: Annotated[
        str | None, Meta(description="Shared by all events from the first rise to the return to inactive.")
    ]
    from_: Annotated[KnownStatusName, Meta(description="The last known status before.")] = field(name="from")
    to: Annotated[KnownStatusName, Meta(description="The status from then on; as before for types that move none.")]
    reasons: Annotated[
        tuple[str, ...],
        Meta(description="Why: the signals of the status that was reached, or that a recovery leaves; `data_loss`."),
    ]
    diagnosis: Annotated[DiagnosisName | None, Meta(description="What was going on. null: not known.")]
    pressure: Annotated[Amount | None, Meta(description="Largest value divided by its overload mark. null: unknown.")]
    metrics: Annotated[Metrics, Meta(description="The measurements of the worst consumer at that time.")]
    thresholds: Annotated[Thresholds | None, Meta(description="The marks that were in force for it.")]
    retry_after_seconds: Annotated[Count, Meta(description="What a refused caller was answered from then on. 0: none.")]
    admit_ratio: Annotated[Ratio, Meta(description="Share of the requests that was admitted from then on.")]
    instance: Annotated[str, Meta(description="The replica that published it.")]
    version: Annotated[str, Meta(description="Its version.")]
    lost: Annotated[
        Count | UnsetType,
        Meta(
            description="With `data_loss`: messages dropped before delivery, summed over the consumers that missed any."
        ),
    ] = UNSET
    override: Annotated[Override | None, Meta(description="The override in force then. null: there was none.")] = None
    alert: Annotated[
        AlertChange | UnsetType, Meta(description="With `alert_firing` and `alert_resolved`: the alert.")
    ] = UNSET
    errors: Annotated[
        tuple[Problem, ...] | UnsetType,
        Meta(description="With `policy_rejected`: what is wrong with the policy, or ignored."),
    ] = UNSET
    policy_revision: Annotated[
        str | UnsetType, Meta(description="With `policy_rejected`: identifies the refused policy.")
    ] = UNSET
