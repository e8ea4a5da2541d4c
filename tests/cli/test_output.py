"""Tables and values print the same in a pipe, and a terminal executes no control characters in them."""

from __future__ import annotations

import pytest

from nats_backpressure.cli.output import (
    format_cell,
    format_reasons,
    format_value,
    policy_rows,
    print_table,
    printable,
    rich_table,
)


def test_outside_a_terminal_a_table_is_aligned_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "n"), [("long name", "1"), ("b", "22")], "title")
    assert capsys.readouterr().out == "title\nname       n\nlong name  1\nb          22\n"


def test_control_characters_and_markup_from_outside_are_only_printed() -> None:
    assert printable("a\x1b[2Jb\n") == "a?[2Jb?"
    table = rich_table(("name",), [("[red]x[/red]",)])
    assert str(next(iter(table.columns[0].cells))) == "[red]x[/red]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "-", id="unknown"),
        pytest.param(0.12345, "0.123", id="three decimals"),
        pytest.param(12_345.0, "12,345", id="thousands"),
        pytest.param(1_234_567.8, "1,234,568", id="no exponent"),
        pytest.param("text", "text", id="text"),
    ],
)
def test_cells_are_short_numbers_or_text(value: float | str | None, text: str) -> None:
    assert format_cell(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(None, "none", id="unset"),
        pytest.param([], "none", id="empty list"),
        pytest.param(True, "true", id="flag"),
        pytest.param(0.5, "0.5", id="number"),
        pytest.param(
            [{"name": "a", "severity": "critical", "when": {"pending_above": 5.0}, "for_seconds": 60.0}],
            "[{name: a, severity: critical, when: {pending_above: 5}, for_seconds: 60}]",
            id="alert",
        ),
    ],
)
def test_policy_values_are_written_as_in_a_file(value: object, text: str) -> None:
    assert format_value(value) == text


def test_a_field_names_its_source_once_or_for_each_member_that_differs() -> None:
    values = {"pending": {"warn": 1, "overload": 3, "max": None}, "mode": "observe"}
    sources = {"pending.warn": "file", "pending.overload": "bucket", "mode": "file"}
    assert list(policy_rows(values, sources)) == [
        ("pending", "warn 1  overload 3", "warn: file, overload: bucket"),
        ("mode", "observe", "file"),
    ]


def test_the_diagnosis_follows_the_reasons_in_parentheses() -> None:
    assert format_reasons(("pending", "drain"), "falling_behind") == "pending, drain, (falling_behind)"
    assert format_reasons((), None) == ""
