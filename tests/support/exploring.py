"""How many examples a property takes: few and the same in `make test`, many and new ones in `make test-slow`."""

from __future__ import annotations

import importlib
import math
import os
import pkgutil

import hypothesis

import benchmarks
import nats_backpressure

TIMES = float(os.environ.get("EXPLORE", "0.5"))
"""How many times the usual number of examples; `make test-slow` sets it."""


def examples(usual: int = 100, *, most: int | None = None, why: str = "") -> int:
    """The `max_examples` of a property: TIMES as many as `usual`, half of them in `make test`.

    `most` limits that where an example costs too much; `why` has the cost.
    """
    if most is not None and not why:
        raise ValueError("a property with fewer examples than the others needs `why`")
    if TIMES < 1:
        return math.ceil(TIMES * usual)
    return round(max(usual, min(TIMES * usual, most or TIMES * usual)))


def register() -> None:
    """The one profile of all properties. The machines are shared: how long an example takes means nothing. No local
    database: it would make a run depend on those before it. The seed is pytest's --hypothesis-seed."""
    hypothesis.settings.register_profile(
        "house",
        max_examples=examples(),
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
    hypothesis.settings.load_profile("house")


def load_everything() -> None:
    """Import all that is ours. Hypothesis takes constants from the source of what is loaded: what a seed comes to
    would depend on which tests were chosen, and which of them ran before."""
    for package in (benchmarks, nats_backpressure):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
