"""The settings file is read again when it has changed: written in place, replaced, or swapped as kubelet does it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.adapters.followed_file import LOOK_EVERY, SETTLED, FollowedFile
from nats_backpressure.config.settings import BadSettings, Settings, load_settings
from tests.fakes.clock import FakeClock
from tests.support.config_map import put_config_map

Change = Callable[[Path, str], None]


def in_place(file: Path, name: str) -> None:
    file.write_text(f"name: {name}\n")


def replaced(file: Path, name: str) -> None:
    other = file.with_name("other")
    in_place(other, name)
    other.rename(file)


def deleted_first(file: Path, name: str) -> None:
    file.unlink()
    in_place(file, name)


def swapped(file: Path, name: str) -> None:
    revisions = [int(path.name.removeprefix("..")) for path in file.parent.glob("..[0-9]*")]
    put_config_map(file.parent, max(revisions) + 1, f"name: {name}\n")


def followed(path: Path) -> FollowedFile:
    return FollowedFile(path, lambda: load_settings(path, {}))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """As a ConfigMap's volume has it."""
    return put_config_map(tmp_path, 1, "name: first\n")


@pytest.mark.parametrize("change", [in_place, replaced, deleted_first, swapped], ids=lambda change: change.__name__)
def test_a_change_is_noticed_once_two_looks_see_the_same(file: Path, change: Change) -> None:
    settings = followed(file)
    assert settings.read().name == "first"
    assert [settings.changed() for _ in range(2)] == [False, False]
    change(file, "second")
    assert [settings.changed() for _ in range(3)] == [False, True, True]
    assert settings.read().name == "second"
    assert [settings.changed() for _ in range(2)] == [False, False]


def test_a_file_that_is_being_written_is_left_alone(file: Path) -> None:
    settings = followed(file)
    settings.read()
    for n in range(5):
        with file.open("a") as half:
            half.write(f"# line {n}\n")
        assert not settings.changed()
    settings.changed()
    assert settings.changed()


def test_what_is_written_between_reading_and_the_first_look_counts(file: Path) -> None:
    def load() -> Settings:
        settings = load_settings(file, {})
        swapped(file, "second")
        return settings

    settings = FollowedFile(file, load)
    assert settings.read().name == "first"
    settings.changed()
    assert settings.changed()


@pytest.mark.parametrize("bad", ["", "nmae: other\n"], ids=["it is gone", "it has a mistake"])
def test_a_file_that_cannot_be_used_is_refused_once(file: Path, bad: str) -> None:
    settings = followed(file)
    settings.read()
    file.resolve().write_text(bad) if bad else file.resolve().unlink()
    settings.changed()
    assert settings.changed()
    with pytest.raises(BadSettings):
        settings.read()
    assert [settings.changed() for _ in range(3)] == [False, False, False]


def test_a_pipe_is_not_followed_since_it_can_be_read_only_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    settings = FollowedFile(pipe, Settings)
    settings.read()
    end = os.open(pipe, os.O_RDWR)
    os.write(end, b"name: other")
    assert [settings.changed() for _ in range(3)] == [False, False, False]
    os.close(end)


def test_without_a_file_nothing_is_followed() -> None:
    settings = FollowedFile(None, Settings)
    settings.read()
    assert not settings.changed()


STEPS = st.lists(st.sampled_from(["in place", "swap", "look", "look", "look"]), max_size=12)


@given(STEPS)
def test_in_the_end_the_newest_content_is_read(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """Whatever is written when: after two quiet looks nothing written is unread, and nothing is read twice."""
    file = put_config_map(tmp_path_factory.mktemp("config"), 1, "name: n0\n")
    settings = followed(file)
    names = [settings.read().name]
    for n, step in enumerate([*steps, "look", "look", "look"], start=1):
        if step == "look":
            names += [settings.read().name] if settings.changed() else []
        else:
            (in_place if step == "in place" else swapped)(file, f"n{n}" + "x" * n)
    assert names[-1] == file.read_text().split()[1]
    assert len(set(names)) == len(names)


async def test_following_reloads_after_each_change(file: Path) -> None:
    clock, settings, names = FakeClock(), followed(file), list[str]()
    settings.read()

    async def reload() -> None:
        names.append(settings.read().name)

    task = asyncio.ensure_future(settings.follow(clock, reload))
    for name in ("second", "third"):
        swapped(file, name)
        await looks(clock, 4)
    task.cancel()
    assert names == ["second", "third"]


async def test_a_change_is_read_a_second_after_it_was_seen_and_looked_for_rarely(file: Path) -> None:
    clock, settings, reloaded = FakeClock(), followed(file), asyncio.Event()
    settings.read()

    async def reload() -> None:
        settings.read()
        reloaded.set()

    with patch.object(settings, "changed", wraps=settings.changed) as looked:
        task = asyncio.ensure_future(settings.follow(clock, reload))
        await asyncio.sleep(0)
        await looks(clock, 5)
        assert looked.call_count == 5
        swapped(file, "second")
        await looks(clock, 1)
        assert not reloaded.is_set()
        await clock.run(SETTLED)
        await asyncio.wait_for(reloaded.wait(), 5)
    task.cancel()


async def looks(clock: FakeClock, count: int) -> None:
    for _ in range(count):
        while not clock.sleeping:  # it looks in a thread
            await asyncio.sleep(0.001)
        await clock.run(LOOK_EVERY)
    while not clock.sleeping:
        await asyncio.sleep(0.001)
