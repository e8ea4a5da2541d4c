"""Refuses a coroutine function where a plain one is called: it would be called, and never run."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def check_not_async(function: Callable[..., Any], what: str) -> None:
    """Raises TypeError."""
    called = getattr(function, "func", function)  # of a partial
    if any(map(inspect.iscoroutinefunction, (called, getattr(type(called), "__call__", None)))):  # noqa: B004
        raise TypeError(f"{what} is an `async def`: a plain function is expected, it is called for each request")
