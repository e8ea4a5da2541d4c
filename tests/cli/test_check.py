"""`check FILE`: prints the policies in force, or one line for each mistake."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from nats_backpressure.cli.check import check


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "NATS_CREDS", "NATS_NKEY", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_a_valid_file_prints_each_pattern_with_its_marks_and_their_source(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("policies:\n  - {subjects: [a.b, 'c.>'], consumers: [r-*], pending: {overload: 50}}\n")
    ran = CliRunner().invoke(check, [str(file)])
    assert ran.exit_code == 0 and not ran.stderr
    lines = ran.stdout.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "a.b  (consumers r-*)",
        "c.>  (consumers r-*)",
        "(all other subjects)",
    ]
    assert "  pending                warn 10  critical 50  overload 50            " in lines[2]
    assert lines[2].endswith("warn: default, critical: file, overload: file")


FULL = """
policies:
  - subjects: [a]
    pending: {overload_seconds: 30, min: 100, max: 100000}
    inflight: {overload_ratio: 0.9}
    admission: {mode: adaptive}
    alerts:
      - {name: long-queue, when: {pending_above: 5000}, for_seconds: 60, severity: critical}
      - {name: stuck, when: {diagnosis: server_stuck}}
"""


def test_dynamic_marks_and_alerts_are_printed_too(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(FULL)
    ran = CliRunner().invoke(check, [str(file)])
    assert ran.exit_code == 0, ran.stderr
    printed = {line.split()[0]: " ".join(line.split()[1:]) for line in reversed(ran.stdout.splitlines())}
    following = "default, overload_seconds: file, min: file, max: file"
    assert printed["pending"].startswith("warn 10 critical 100 overload 1000 overload_seconds 30 min 100 max 100000 ")
    assert printed["pending"].endswith(f"overload: {following}")
    assert printed["inflight"].startswith("warn 50 critical 200 overload 500 overload_ratio 0.9 ")
    assert printed["admission"].startswith("mode adaptive floor 0.01 target_drain_seconds 2 ")
    assert (
        printed["alerts"] == "[{name: long-queue, when: {pending_above: 5000}, for_seconds: 60, severity: critical}, "
        "{name: stuck, when: {diagnosis: server_stuck}, severity: warning}] file"
    )


def test_unset_fields_are_printed_as_none(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{}")
    lines = CliRunner().invoke(check, [str(file)]).stdout.splitlines()
    printed = {line.split()[0]: line.split()[1:] for line in lines}
    assert printed["alerts"] == printed["override"] == ["none", "default"]
    assert not any("None" in line for line in lines)


def test_a_file_without_policies_prints_one_policy_for_all_subjects(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("{}")
    assert CliRunner().invoke(check, [str(file)]).stdout.splitlines()[0] == "(all subjects)"


def test_an_invalid_file_prints_one_line_for_each_mistake_and_exits_with_78(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("nmae: x\npolicies:\n  - subjects: [a]\n    pending:\n      warn: -1\n")
    ran = CliRunner().invoke(check, [str(file)])
    assert ran.exit_code == 78 and not ran.stdout
    assert sorted(ran.stderr.splitlines()) == [
        f"{file}:1: nmae: unknown key; did you mean `name`?",
        f"{file}:5: policies[0].pending.warn: must be at least 0.001, is -1",
    ]


def test_a_missing_file_prints_one_line(tmp_path: Path) -> None:
    ran = CliRunner().invoke(check, [str(tmp_path / "none.yaml")])
    assert ran.exit_code == 78
    assert ran.stderr == f"{tmp_path}/none.yaml: cannot be read: no such file or directory\n"


@pytest.mark.parametrize(
    ("given", "code", "shown"),
    [
        ("name: team", 0, "(all subjects)\n"),
        ("nmae: team", 78, "-:1: nmae: unknown key; did you mean `name`?\n"),
        ("", 78, "-: is empty: write {} for a file without settings\n"),
    ],
)
def test_standard_input_is_read_as_a_file(given: str, code: int, shown: str) -> None:
    ran = CliRunner().invoke(check, ["-"], input=given)
    assert ran.exit_code == code and (ran.stderr == shown or ran.stdout.startswith(shown))


def test_files_that_are_not_there_are_mistakes_unless_one_says_so(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("nats: {credentials_file: /missing/a.creds, tls: {ca_file: /missing/ca.pem}}\n")
    ran = CliRunner().invoke(check, [str(file)])
    assert ran.exit_code == 78 and not ran.stdout
    assert ran.stderr.splitlines() == [
        f"{file}: nats: /missing/a.creds: No such file or directory",
        f"{file}: nats: TLS files /missing/ca.pem: No such file or directory",
    ]
    assert CliRunner().invoke(check, [str(file), "--without-secrets"]).exit_code == 0
