"""A real browser, Debian's Chromium without a window, fetched like the other parts of tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support.debian import unpacked

PACKAGE = "chromium-headless-shell"
"""Some 100 MB with what it needs."""


@asynccontextmanager
async def browsing(url: str, home: Path) -> AsyncIterator[None]:
    """The browser has this page open until the block ends."""
    root = unpacked(PACKAGE)
    [program] = root.glob(f"usr/lib/chromium*/{PACKAGE}")
    libraries = {str(path.parent) for path in (root / "usr" / "lib").rglob("lib*.so*")}
    environment = {**os.environ, "HOME": str(home), "LD_LIBRARY_PATH": ":".join(sorted(libraries))}
    options = ["--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={home / 'profile'}"]
    with (home / "browser.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program, *options, url, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()
