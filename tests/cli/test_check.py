"""`check FILE`: what is in force, or what is wrong; nothing else."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli.check import check


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "NATS_CREDS", "NATS_NKEY", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_a_good_file_prints_each_pattern_with_its_marks_and_where_they_come_from(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("policies:\n  - {subjects: [a.b, 'c.>'], consumers: [r-*], pending: {overload: 50}}\n")
    ran = CliRunner().invoke(check, [str(file)])
    assert ran.exit_code == 0 and not ran.stderr
    lines = ran.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "a.b  (consumers r-*)",
        "c.>  (consumers r-*)",
        "everything else",
    ]
    assert "  pending                warn 10  critical 50  overload 50            " in lines[2]
    assert lines[2].endswith("warn: default, critical: file, overload: file")


def test_a_bad_file_is_one_line_for_each_mistake_and_exit_78(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("nmae: x\npolicies:\n  - subjects: [a]\n    pending:\n      warn: -1\n")
    ran = CliRunner().invoke(check, [str(file)])
    assert ran.exit_code == 78 and not ran.stdout
    assert sorted(ran.stderr.splitlines()) == [
        f"{file}:1: nmae: unknown key; did you mean `name`?",
        f"{file}:5: policies[0].pending.warn: must be at least 0.001, is -1",
    ]


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    ran = CliRunner().invoke(check, [str(tmp_path / "none.yaml")])
    assert ran.exit_code == 78
    assert ran.stderr == f"{tmp_path}/none.yaml: cannot be read: no such file or directory\n"
