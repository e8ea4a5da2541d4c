"""Event: one change of a subject, to be published; and Alert."""

from __future__ import annotations

from msgspec import Struct

from nats_backpressure.core.model.marks import Marks
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.policy.schema import Override
from nats_backpressure.protocol.values import AlertState, Diagnosis, EventType, Status


class SubjectAlert(Struct, frozen=True):
    """One alert of a subject, and its state."""

    name: str
    severity: str
    when: str
    """The condition in words, as `pending_above: 5000`."""
    state: AlertState
    since: float
    """Unix seconds since which it has this state."""
    value: float | str | None = None
    """The value that met the condition."""
    held: float = 0.0
    """While it is pending: seconds for which the condition had held when this was stored, as far as anybody looked."""
    over_since: float | None = None
    """Of a built-in alert in a break (its condition does not hold, though it is not over yet): when that began, in Unix
    seconds. It names the break; nothing is measured from it."""
    over_for: float = 0.0
    """Seconds for which the break had lasted when this was stored, as far as anybody looked."""


class SubjectEvent(Struct, frozen=True):
    """One change of a subject, to be published once. `seq` rises by one per subject, across epochs too."""

    id: str
    type: EventType
    subject: str
    at: float
    """Unix seconds at which the change was seen."""
    epoch: str
    seq: int
    incident: str | None
    was: Status
    now: Status
    reasons: tuple[str, ...]
    pressure: float | None
    reading: Reading | None
    marks: Marks | None
    retry_after: int
    admit_ratio: float
    lost: int | None = None
    """With `data_loss`: how many messages were certainly lost."""
    diagnosis: Diagnosis | None = None
    override: Override | None = None
    """The override in force at that time."""
    alert: SubjectAlert | None = None
    """With `alert_firing` and `alert_resolved`."""
    errors: tuple[tuple[str, str], ...] = ()
    """With `policy_rejected`: (path, message)."""
    policy_revision: str = ""
    """With `policy_rejected`: identifies the refused policy."""
