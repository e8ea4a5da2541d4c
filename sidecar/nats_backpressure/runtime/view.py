"""ServiceView: read-only access to the service for queries and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.proofs import Proofs
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.subject.state import SubjectState
from nats_backpressure.core.time_windows import WindowSummary
from nats_backpressure.policy.active import ActivePolicies
from nats_backpressure.protocol.timestamps import Now


class ServiceView(Protocol):
    """The service as its readers see it. Values are frozen: a reader on another thread copies a mapping first."""

    @property
    def settings(self) -> Settings: ...

    @property
    def subjects(self) -> Mapping[str, SubjectState]: ...

    @property
    def watched_changes(self) -> int:
        """A number that is another one whenever other subjects are watched."""

    def covering(self, subject: str) -> Iterable[str]:
        """The watched patterns that cover a literal subject, in any order."""

    @property
    def looks(self) -> Mapping[str, StreamLook]:
        """The newest look at each watched stream."""

    @property
    def policies(self) -> ActivePolicies:
        """The policies in force."""

    @property
    def newest_read_at(self) -> float | None:
        """Monotonic time of the newest reading of any stream; None until each was read or tried."""

    @property
    def observing(self) -> bool:
        """Whether every stream was read or tried: there is something to answer."""

    def is_proved_elsewhere(self, subject: str) -> bool:
        """Whether another replica, which runs and can write, has readings of a subject that is stored."""

    def is_gone(self, subject: str) -> bool:
        """Whether no consumer counts under a subject any more, as far as all streams show that were read."""

    def unread(self, subject: str) -> bool:
        """Whether a consumer may count under a subject without our knowing it yet."""

    def interval(self, subject: str) -> float:
        """Seconds between two readings of the subject's streams, as planned now."""

    def longest_interval(self) -> float:
        """The longest of all subjects; the shortest that may be if there is none."""

    @property
    def stretch(self) -> float:
        """The factor by which readings are rarer than planned because the budget is too small; 1 if it is not."""

    @property
    def reads(self) -> Callable[[str], bool]:
        """Whether this replica reads a stream itself, and does not receive its readings from another one."""

    def proofs(self, subject: str) -> Proofs:
        """What looks at the subject's streams prove."""

    def next_reading(self, subject: str) -> float:
        """Monotonic time of the next planned reading."""

    def window(self, subject: str, now: Now, seconds: float) -> WindowSummary | None:
        """What a subject was like over the last `seconds`; None where it is not known."""

    def time_in(self, subject: str, now: Now) -> Mapping[str, float]:
        """Seconds spent in each status since this process first knew the subject."""
