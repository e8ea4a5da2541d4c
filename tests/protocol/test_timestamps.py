"""Times against the standard library's calendar."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.protocol.timestamps import EXAMPLE, format_rfc3339, parse_rfc3339

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2999, 12, 31), timezones=st.just(UTC))


@given(MOMENTS)
def test_a_moment_is_written_and_read_as_the_calendar_says(moment: datetime) -> None:
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    text = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert format_rfc3339(moment.timestamp()) == text
    assert parse_rfc3339(text) == pytest.approx(moment.timestamp(), abs=1e-4)


@pytest.mark.parametrize(
    ("text", "unix"),
    [
        ("1970-01-01T00:00:00.000000001Z", 1e-9),
        ("2000-02-29T12:00:00.123456789Z", 951_825_600.123456789),
        ("2026-11-26T00:47:09.5Z", 1_795_654_029.5),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799.999),
    ],
)
def test_a_time_is_exact_to_nine_decimals(text: str, unix: float) -> None:
    assert parse_rfc3339(text) == unix


@pytest.mark.parametrize("text", ["2024-02-29T23:59:59Z", "2000-02-29T00:00:00.5Z", EXAMPLE, "1970-01-01T00:00:00Z"])
def test_a_moment_may_leave_the_decimals_out(text: str) -> None:
    assert parse_rfc3339(text) == datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Z",
        "2026-11-23",
        "2026-11-23T14:05:00",
        "2026-11-23T14:05:00+01:00",
        "2026-11-23 14:05:00Z",
        "2026-11-23T14:05Z",
        "2026-11-23T14:05:00.Z",
        "2026-11-23T14:05:00.1234567890Z",
        "2026-13-01T00:00:00Z",
        "2026-00-01T00:00:00Z",
        "2026-02-29T00:00:00Z",
        "2100-02-29T00:00:00Z",
        "2026-04-31T00:00:00Z",
        "2026-11-00T00:00:00Z",
        "2026-11-23T24:00:00Z",
        "2026-11-23T14:60:00Z",
        "2016-12-31T23:59:60Z",
        "1969-12-31T23:59:59Z",
        "2026-11-23T14:05:0٥Z",
        "+026-11-23T14:05:00Z",
        "2026-11-23T14:05: 0Z",
    ],
)
def test_anything_else_is_no_moment(text: str) -> None:
    assert parse_rfc3339(text) is None
