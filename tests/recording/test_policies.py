"""A recording contains the policies that were in force; a replay without settings uses them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings, WatchSetting
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.model.samples import ConsumerConfig
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.policy.parse import OverrideEntry, entry_document, parse_entry
from nats_backpressure.policy.precedence import LayerEntry, Sources
from nats_backpressure.policy.schema import Guard, Override
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.recording import policies
from nats_backpressure.recording.decoder import Decoder
from nats_backpressure.recording.format import (
    BadLine,
    ConsumerLine,
    HeaderLine,
    Line,
    PoliciesLine,
    PolicyLine,
    UnreadableRecording,
    read_lines,
)
from nats_backpressure.recording.policies import PoliciesDecoded, PolicyLineWriter, RecordedSettings
from nats_backpressure.recording.recorder import RecordingFile, RecordingObserver
from nats_backpressure.recording.replay import Replay
from tests.fakes.observer import FakeJetStream
from tests.policy.test_parse import FULL
from tests.recording.observations import KEY, now
from tests.support.policies import entries, entry
from tests.support.recordings import MONO, SUBJECT, WALL, beginning, observed, reading, written

OVERRIDES = st.builds(
    OverrideEntry, st.just("a.*"), st.builds(Override, st.sampled_from(["open", "reject"]), st.floats(0, 4e9))
)
SOURCES = st.builds(
    Sources,
    st.lists(entries("a.b", ">"), max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["a", "b", "=override.a.=2A"]), entries("a.b") | OVERRIDES, max_size=3),
    st.builds(Guard, st.booleans(), st.none() | st.integers(1, 9)),
    st.booleans(),
)
SCOPE = RecordedSettings((WatchEntry("S", ("r-*",)),), 1.0, 2.0)
EVERYTHING = RecordedSettings()
MILD = entry(SUBJECT, alert_on_active=False, pending={"overload": 50_000}, inflight={"overload": 50_000})


def read(lines: Iterable[Line]) -> list[PoliciesDecoded]:
    reader, decoded = Decoder(), []
    for _, line in read_lines(io.BytesIO(written([beginning()[0], *lines]))):
        assert not isinstance(line, BadLine), line.why
        thing = reader.decode(line)
        assert not isinstance(thing, BadLine), thing
        decoded += [thing] if isinstance(thing, PoliciesDecoded) else []
    return decoded


@given(entries("a.b", "a.*", ">") | st.just(parse_entry(FULL)[0]))
def test_a_policy_entry_is_decoded_as_it_was_written(one: LayerEntry) -> None:
    assert parse_entry(entry_document(one)) == (one, ())  # type: ignore[arg-type]


@given(st.lists(SOURCES, min_size=1, max_size=5))
def test_the_policies_in_force_are_decoded_after_any_changes(standing: list[Sources]) -> None:
    writer = PolicyLineWriter(SCOPE)
    lines = [writer.lines(sources, now(n)) for n, sources in enumerate(standing)]
    decoded = read(line for lines_ in lines for line in lines_)
    changed = [s for n, s in enumerate(standing) if n == 0 or s != standing[n - 1]]
    assert [each.sources for each in decoded] == changed
    assert all(each.scope == SCOPE and each.name == "backpressure" for each in decoded)
    for n, lines_ in enumerate(lines[1:], start=1):
        assert bool(lines_) is (standing[n] != standing[n - 1])


def test_only_changed_entries_are_written() -> None:
    writer, many = PolicyLineWriter(RecordedSettings()), {f"k{n}": entry("a") for n in range(1000)}
    assert len(writer.lines(Sources(bucket=many), now(0))) == 1001
    assert len(writer.lines(Sources(bucket={**many, "k7": entry("b")}), now(1))) == 2
    assert [type(line) for line in writer.lines(Sources(bucket={"k7": entry("b")}), now(2))[-2:]] == [
        PolicyLine,
        PoliciesLine,
    ]


def test_an_invalid_policy_is_reported_and_the_others_stay_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Decoder()
    reader.decode(beginning()[0])
    bad = reader.decode(PolicyLine("file", "0", policy={"subjects": ["a"], "pending": {"overload": -1}}))
    assert bad == BadLine("the policy is not valid: pending.overload: must be at least 0.001, is -1")
    assert reader.decode(PolicyLine("file", "1", policy={"subjects": ["a"], "mode": "observe"})) is None
    decoded = reader.decode(PoliciesLine((MONO, WALL)))
    assert isinstance(decoded, PoliciesDecoded) and decoded.sources.file == (entry("a", mode="observe"),)
    monkeypatch.setattr(policies, "ENTRIES_LIMIT", 1)
    with pytest.raises(UnreadableRecording, match="more than 1 policies"):
        reader.decode(PolicyLine("file", "2", policy={"subjects": ["b"]}))


def burst(*first: Line, during: Iterable[Line] = ()) -> list[Line]:
    """One second of calm, two of a queue and a full worker, then calm; something happens after a second of that."""
    header, stream, consumer = beginning()
    lines = [header, *first, stream, consumer]
    for n in range(60):
        at = n / 10
        lines += during if n == 20 else ()
        lines += reading(at, 2000, 600, 0) if 1 <= at < 3 else reading(at, 0, 0, 2600 if at >= 3 else 0)
    return lines


def evaluated(lines: Iterable[Line], settings: Settings | None = None) -> tuple[list[SubjectEvent], Replay]:
    events: list[SubjectEvent] = []
    replay = Replay(settings, events.append)
    for thing in observed(lines):
        replay.process(thing)
    return events, replay


def rule(
    *file: LayerEntry, at: float = 0.0, scope: RecordedSettings = EVERYTHING, trust: bool = False, **bucket: LayerEntry
) -> list[Line]:
    sources = Sources(tuple(file), bucket, trust_metadata=trust)  # type: ignore[arg-type]
    return PolicyLineWriter(scope).lines(sources, Now(MONO + at, WALL + at))


def words(events: Iterable[SubjectEvent]) -> list[str]:
    return [event.now.word for event in events if event.was is not event.now]


def test_without_settings_the_recorded_policies_are_used() -> None:
    events, replay = evaluated(burst(*rule(MILD)))
    assert (events, replay.has_policies) == ([], True)
    other = Settings(policies=(entry(">", alert_on_active=False),))
    assert words(evaluated(burst(*rule(MILD)), other)[0]) == ["active", "inactive"]


def test_a_recording_without_policies_uses_the_defaults() -> None:
    events, replay = evaluated(burst())
    assert (words(events), replay.has_policies) == (["active", "inactive"], False)


def test_a_policy_change_applies_from_its_time_on() -> None:
    strict = entry(SUBJECT, pending={"overload": 1000}, active_signals=1)
    writer = PolicyLineWriter(RecordedSettings())
    first = writer.lines(Sources((MILD,)), now(0))
    events, _ = evaluated(burst(*first, during=writer.lines(Sources((MILD,), {SUBJECT: strict}), now(2))))
    assert [(event.at - WALL, event.now.word) for event in events] == [(2.0, "active"), (4.0, "inactive")]


def test_overrides_and_trusted_metadata_are_recorded_too() -> None:
    override = OverrideEntry("orders.*", Override("open", WALL + 2))
    quiet = entry(SUBJECT, alert_on_active=False)
    active, recovery = evaluated(burst(*rule(quiet, override=override)))[0]
    assert (active.override, recovery.override) == (override.override, None)
    assert active.reasons == ("pending", "inflight", "override")
    lines = burst(*rule(quiet, trust=True))
    config = ConsumerConfig(metadata=(("backpressure.pending.overload", "50000"), ("backpressure.mode", "observe")))
    lines = [replace(line, config=config) if isinstance(line, ConsumerLine) else line for line in lines]
    assert words(evaluated(lines)[0]) == ["warning", "inactive"]


def test_subjects_that_were_not_watched_are_not_evaluated() -> None:
    assert evaluated(burst(*rule(scope=RecordedSettings((WatchEntry("OTHER"),)))))[1].samples == 0


async def test_every_part_starts_with_all_policies_in_force(tmp_path: Path) -> None:
    world = FakeJetStream()
    world.add_stream("S", ("a",))
    world.add_consumer(KEY)
    settings = Settings(watch=(WatchSetting("S"),))
    recorder = RecordingObserver(world, world.clock, RecordingFile(tmp_path / "r", 1000), settings, lambda what: None)
    many = Sources(tuple(entry(f"a{n}", mode="observe") for n in range(100)))
    recorder.record_policies(many)
    for n in range(400):
        world.publish("S", "a")
        world.clock.advance(0.1)
        await recorder.consumers("S")
        if n == 200:
            recorder.record_policies(Sources(many.file[:50]))
    recorder.close()
    part = (tmp_path / "r.1").read_bytes()
    assert part.count(b'"t":"rule"') == 50 and part.count(b'"t":"read"') > 20, "not a file for each reading"
    assert len(part) < 20_000, "the policies, and as much again"
    header, *others = [line for _, line in read_lines(io.BytesIO(part))]
    assert isinstance(header, HeaderLine)
    decoded = read(line for line in others if isinstance(line, PolicyLine | PoliciesLine))
    assert [each.sources for each in decoded] == [Sources(many.file[:50])]
    assert decoded[0].scope.watch == (WatchEntry("S"),)
