"""The types of the fields of messages, with their bounds."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Subject = Annotated[str, Meta(min_length=1, max_length=1024)]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339 in UTC, with milliseconds and a `Z`."""
Count = Annotated[int, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Mark = Count | Amount
"""A whole one stays whole when it is decoded and encoded: to some readers 10 and 10.0 are not the same."""
Ratio = Annotated[float, Meta(ge=0, le=1)]
