"""Fetches Debian packages and unpacks them under .cache: without root, and without changing the machine."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.parts import need_command

CACHE = Path(__file__).parents[2] / ".cache" / "debian"
FETCH_SECONDS = 240
"""Seconds for one command of apt: the lists are some 10 MB."""


def unpacked(*packages: str) -> Path:
    """A directory with these packages, and with what they need that the machine does not have. Fetched once. Skips the
    test where there is no apt (a failure in CI), and raises RuntimeError where apt fails."""
    apt, dpkg = need_command("apt-get"), need_command("dpkg-deb")
    root = CACHE / "+".join(sorted(packages))
    with _alone():
        if not root.exists():
            archives = _download(apt, packages)
            unfinished = CACHE / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            for archive in archives:
                _run(dpkg, "--extract", str(archive), str(unfinished))
            unfinished.rename(root)
    return root


@contextmanager
def _alone() -> Iterator[None]:
    """Test processes run side by side."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(apt: str, packages: tuple[str, ...]) -> list[Path]:
    lists, cache = CACHE / "lists", CACHE / "packages"
    for directory in (lists / "partial", cache / "archives" / "partial"):
        directory.mkdir(parents=True, exist_ok=True)
    for old in (cache / "archives").glob("*.deb"):
        old.unlink()
    ours = [f"Dir::State::lists={lists}", f"Dir::Cache={cache}", "Debug::NoLocking=true", "APT::Sandbox::User=root"]
    options = [argument for option in ours for argument in ("-o", option)]
    _run(apt, *options, "--quiet", "update")
    _run(apt, *options, "--yes", "--download-only", "--reinstall", "--no-install-recommends", "install", *packages)
    return sorted((cache / "archives").glob("*.deb"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
    if done.returncode != 0:
        raise RuntimeError(
            f"cannot get a part of this test: {' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
