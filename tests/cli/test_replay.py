"""`replay FILE`: events and a summary on standard output, problems on standard error."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from nats_backpressure.cli.replay import BAD_SHOWN, replay
from nats_backpressure.recording.format import Line, PoliciesLine, StreamLine, encode_line
from tests.support.recordings import MONO, WALL, beginning, reading, written


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_URL", "NATS_CREDS", "NATS_NKEY", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("BACKPRESSURE_CONFIG", raising=False)


def burst() -> list[Line]:
    """A queue and a full worker from the first to the third second, read every 0.1 s for six."""
    lines: list[Line] = [beginning()[0], PoliciesLine((MONO, WALL)), *beginning()[1:]]
    for n in range(61):
        lines += reading(n / 10, 2000, 600, 0) if 10 <= n < 30 else reading(n / 10, 0, 0, 2600 if n >= 30 else 0)
    return lines


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    file = tmp_path / "burst.jsonl"
    file.write_bytes(written(burst()))
    return file


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    return config(tmp_path, "quiet", alert_on_active=False)


def config(where: Path, name: str, **fields: object) -> Path:
    file = where / f"{name}.yaml"
    file.write_text(json.dumps({"policies": [{"subjects": [">"], **fields}]}))
    return file


def run(*arguments: object, data: bytes | None = None) -> Result:
    return CliRunner().invoke(replay, [str(argument) for argument in arguments], input=data)


def test_a_transition_is_one_line_with_reasons_and_measurements(recording: Path, quiet: Path) -> None:
    ran = run(recording, "--config", quiet)
    assert ran.exit_code == 0 and ran.stderr == ""
    active, recovery, *_ = ran.stdout.splitlines()
    assert active.split("  ")[:5] == [
        "2027-01-15T08:00:01.000Z",
        "orders.new",
        "inactive -> active",
        "backpressure_active",
        "[pending, inflight]",
    ]
    assert "  pressure 2.0  pending 2000  inflight 600  " in active
    assert "  active -> inactive  recovery  []" in recovery


def test_the_summary_has_counts_time_span_and_speed(recording: Path, quiet: Path) -> None:
    lines = run(recording, "--config", quiet).stdout.splitlines()
    after = lines[lines.index("") + 1 :]
    assert after[0] == "2027-01-15T08:00:00.000Z to 2027-01-15T08:00:06.000Z, 6.0 s"
    assert after[1].startswith("61 samples; evaluated in ") and after[1].endswith(" times as fast as it happened")
    assert after[2] == "events: backpressure_active 1, recovery 1"
    assert after[3] == "orders.new: active 3.0 s, inactive 3.0 s, unknown 0.0 s"


def test_json_prints_only_events_as_published(recording: Path, quiet: Path) -> None:
    ran = run(recording, "--config", quiet, "--json")
    active, recovery = [json.loads(line) for line in ran.stdout.splitlines()]
    assert (active["from"], active["to"], active["reasons"]) == ("inactive", "active", ["pending", "inflight"])
    assert active["metrics"]["pending_messages"] == 2000
    assert active["thresholds"]["queue_overload"] == 1000
    assert (recovery["type"], recovery["seq"], recovery["instance"]) == ("recovery", 2, "replay")
    assert "61 samples" in ran.stderr


def test_other_policies_give_other_events(recording: Path, tmp_path: Path) -> None:
    lax = config(tmp_path, "lax", pending={"overload": 5000}, inflight={"overload": 5000})
    assert "events: none" in run(recording, "--config", lax).stdout


def test_two_policies_are_compared_in_one_pass(recording: Path, quiet: Path, tmp_path: Path) -> None:
    other = config(tmp_path, "other", pending={"overload": 5000}, alert_on_active=False)
    ran = run(recording, "--config", quiet, "--compare", other)
    assert ran.stdout.splitlines()[:2] == [
        "2027-01-15T08:00:01.000Z  orders.new  active [pending, inflight] | warning [inflight]",
        "2027-01-15T08:00:04.000Z  orders.new  both inactive, after 3.0 s",
    ]
    assert "events: backpressure_active 1 | 0, backpressure_warning 0 | 1, recovery 1 | 1" in ran.stdout
    assert ran.stdout.rstrip().endswith(
        "orders.new: active 3.0 s | 0.0 s, inactive 3.0 s | 3.0 s, unknown 0.0 s | 0.0 s, warning 0.0 s | 3.0 s;"
        " differed for 3.0 s"
    )
    apart, together = [
        json.loads(line) for line in run(recording, "--config", quiet, "--compare", other, "--json").stdout.splitlines()
    ]
    assert apart["config"] == {"status": "active", "reasons": ["pending", "inflight"]}
    assert apart["compare"] == {"status": "warning", "reasons": ["inflight"]}
    assert (apart["differed_seconds"], together["differed_seconds"]) == (None, 3.0)


def test_a_recording_without_policies_uses_the_defaults_with_a_note(tmp_path: Path, quiet: Path) -> None:
    file = tmp_path / "old.jsonl"
    file.write_bytes(written(line for line in burst() if not isinstance(line, PoliciesLine)))
    ran = run(file)
    assert ran.exit_code == 0 and "backpressure_active 1" in ran.stdout
    assert ran.stderr == f"{file}: has no policies: the defaults are used (see --config)\n"
    assert run(file, "--config", quiet).stderr == ""


def test_only_the_chosen_subjects_are_evaluated(recording: Path) -> None:
    assert "\n0 samples" in run(recording, "--subject", "invoices.>").stdout
    assert "61 samples" in run(recording, "--subject", "orders.*").stdout
    refused = run(recording, "--subject", "a..b")
    assert refused.exit_code == 2 and "--subject" in refused.stderr


def test_standard_input_and_gz_files_are_read(recording: Path, tmp_path: Path) -> None:
    packed = tmp_path / "burst.jsonl.gz"
    packed.write_bytes(gzip.compress(recording.read_bytes()))
    expected = [line for line in run(recording).stdout.splitlines() if "evaluated in" not in line]
    for ran in (run(packed), run("-", data=recording.read_bytes())):
        assert [line for line in ran.stdout.splitlines() if "evaluated in" not in line] == expected


class TestUnreadableRecordings:
    def replay_lines(self, file: Path, lines: Iterable[bytes]) -> Result:
        file.write_bytes(b"".join(lines))
        return run(file)

    def test_a_bad_line_is_reported_and_the_rest_is_evaluated(self, recording: Path, quiet: Path) -> None:
        whole = run(recording, "--config", quiet).stdout.splitlines()[:2]
        lines = recording.read_bytes().splitlines(keepends=True)
        ran = self.replay_lines(
            recording, [*lines[:7], b"{oops\n", b'{"t":"read","s":5,"at":[1000.0,1.0]}\n', *lines[7:]]
        )
        assert ran.exit_code == 0
        first, second = ran.stderr.splitlines()
        assert first.startswith(f"{recording}:8: not JSON: ") and first.endswith("; the line is skipped")
        assert second == f"{recording}:9: stream 5 has no line before this one; the line is skipped"
        assert run(recording, "--config", quiet).stdout.splitlines()[:2] == whole

    def test_many_bad_lines_are_counted(self, recording: Path) -> None:
        ran = self.replay_lines(recording, [recording.read_bytes(), *[b"x\n"] * (BAD_SHOWN + 1234)])
        assert len(ran.stderr.splitlines()) == BAD_SHOWN + 1
        assert ran.stderr.splitlines()[-1] == f"{recording}: 1,234 more unreadable lines were skipped"

    def test_a_cut_off_end_is_reported_but_is_not_an_error(self, recording: Path) -> None:
        ran = self.replay_lines(recording, [recording.read_bytes()[:-20]])
        assert ran.exit_code == 0
        assert ran.stderr == f"{recording}:126: cut off, as when a recording is interrupted; the line is skipped\n"

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            pytest.param(b"", "not a recording: it is empty", id="empty"),
            pytest.param(
                encode_line(StreamLine(0, "S", "t")),
                "not a recording: its first line is not a `recording` line",
                id="no beginning",
            ),
            pytest.param(
                b'{"t":"recording","format":9,"name":"x","version":"3.1","at":[1,1]}\n',
                "written in format 9 by version 3.1; this one reads 1",
                id="a format of the future",
            ),
        ],
    )
    def test_a_file_that_is_not_a_recording_prints_one_line_and_exits_with_65(
        self, tmp_path: Path, content: bytes, problem: str
    ) -> None:
        ran = self.replay_lines(tmp_path / "r", [content])
        assert ran.exit_code == 65 and ran.stdout == ""
        assert ran.stderr == f"{tmp_path}/r: {problem}\n"

    def test_a_file_without_a_readable_line_is_not_called_empty(self, tmp_path: Path) -> None:
        file = tmp_path / "r"
        ran = self.replay_lines(file, [b"hello\n"])
        assert ran.exit_code == 65 and ran.stdout == ""
        assert ran.stderr.splitlines() == [
            f"{file}:1: not JSON: invalid character (byte 0); the line is skipped",
            f"{file}: not a recording: no readable line in it",
        ]

    @pytest.mark.parametrize(
        ("name", "problem"),
        [
            pytest.param("none", "cannot be read: no such file or directory", id="a file that is not there"),
            pytest.param("none.gz", "cannot be read: no such file or directory", id="a compressed one"),
            pytest.param(".", "cannot be read: is a directory", id="a directory"),
        ],
    )
    def test_a_file_that_cannot_be_opened_prints_one_line_and_exits_with_65(
        self, tmp_path: Path, name: str, problem: str
    ) -> None:
        ran = run(tmp_path / name)
        assert ran.exit_code == 65 and ran.stdout == ""
        assert ran.stderr == f"{tmp_path / name}: {problem}\n"

    def test_a_gz_file_that_is_not_compressed_is_an_error(self, tmp_path: Path) -> None:
        file = tmp_path / "r.gz"
        ran = self.replay_lines(file, [written(burst())])
        assert ran.exit_code == 65
        assert ran.stderr.startswith(f"{file}: line 1: cannot be read any further: Not a gzipped file")

    def test_an_invalid_settings_file_prints_one_line_for_each_mistake_and_exits_with_78(
        self, recording: Path, tmp_path: Path
    ) -> None:
        bad = config(tmp_path, "bad", pending={"warn": -1})
        for option in ("--config", "--compare"):
            ran = run(recording, option, bad)
            assert ran.exit_code == 78 and ran.stdout == ""
            assert "policies[0].pending.warn" in ran.stderr


@pytest.mark.parametrize("how", ["environment", "option", "neither"])
def test_it_says_where_a_file_of_the_environment_stands_for_the_recorded_policies(
    recording: Path, quiet: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "environment":
        monkeypatch.setenv("BACKPRESSURE_CONFIG", str(quiet))
    result = CliRunner().invoke(replay, [str(recording), *(["--config", str(quiet)] if how == "option" else [])])
    assert result.exit_code == 0
    assert ("not the recorded ones" in result.stderr) == (how == "environment")
