"""WorkerReports: what the workers that ask before each pull have said of one consumer, as far as no sample shows it."""

from __future__ import annotations

from msgspec import Struct


class WorkerReports(Struct, frozen=True, gc=False):
    returned: int = 0
    """Messages in flight that no worker has: they returned or dropped them, and the server delivers them later."""
    refused: bool = False
    """Whether one of them asked in the last seconds and was granted nothing: then nobody pulls because of us."""


NO_REPORTS = WorkerReports()
