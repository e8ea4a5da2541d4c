"""Overloaded: raised where a message is not published because the next stage is overloaded."""

from __future__ import annotations

from nats_backpressure.client.admission import Admission


class Overloaded(Exception):
    """The message was not published. `admission` has what was decided; `retry_after_seconds` is without jitter."""

    def __init__(self, subject: str, admission: Admission) -> None:
        super().__init__(subject, admission)  # what another process makes it from again (pickle)
        self.subject, self.admission = subject, admission
        self.retry_after_seconds = admission.retry_after_seconds

    def __str__(self) -> str:
        seconds = f"{self.retry_after_seconds:g}"
        return f"not published to {self.subject[:200]}: {_reason(self.admission)}; try again in {seconds} s"


def _reason(admission: Admission) -> str:
    if admission.override:
        return "an operator's override refuses"
    if admission.status == "unknown":
        return "nothing is known of its consumers now"
    return f"its consumers are overloaded ({admission.status})"
