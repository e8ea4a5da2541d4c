"""The report that a gateway publishes: how many requests it was offered and admitted.

Its subject is `P.report.gateway.<encoded subject>`. It replaces estimates by counts.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from nats_backpressure.protocol.subjects import decode

SIZE_LIMIT = 1024
"""Bytes; a report has three numbers."""
MOST = 1_000_000_000
"""Requests in one report."""
SHORTEST, LONGEST = 0.05, 60.0
"""Seconds one report may cover."""


class GatewayReport(Struct, frozen=True):
    """Requests of one gateway since its last report. Unknown fields are ignored."""

    offered: Annotated[int, Meta(ge=0, le=MOST, description="Requests that the gateway received since then.")]
    admitted: Annotated[int, Meta(ge=0, le=MOST, description="Of them, those that it let through.")]
    seconds: Annotated[float, Meta(ge=SHORTEST, le=LONGEST, description="Seconds since its last report.")]


class BadReport(ValueError):
    """A report that cannot be read; the text names the mistake and its place."""


_REPORT = msgspec.json.Decoder(GatewayReport)


def parse(payload: bytes) -> GatewayReport:
    """Raises BadReport."""
    if len(payload) > SIZE_LIMIT:
        raise BadReport(f"a report is at most {SIZE_LIMIT} bytes")
    try:
        report = _REPORT.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadReport(str(error)) from None
    if report.admitted > report.offered:
        raise BadReport("more was admitted than was offered")
    return report


def everywhere(prefix: str) -> str:
    """The subject pattern of all reports."""
    return f"{prefix}.report.gateway.>"


def about(prefix: str, report_subject: str) -> str:
    """The watched subject that a report published on `report_subject` is about. Raises BadTail."""
    return decode(report_subject.removeprefix(f"{prefix}.report.gateway."))
