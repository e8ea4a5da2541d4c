"""The order in which the tests run."""

from __future__ import annotations

import pytest


def spread(items: list[pytest.Item], folder: str) -> None:
    """Put the tests of a folder evenly between the others. xdist gives each worker the same number of tests, and then
    takes from the one with the most: where tests of seconds lie together, they are waited for in the end."""
    parts: tuple[list[pytest.Item], ...] = ([], [])
    for item in items:
        parts[item.nodeid.startswith(folder)].append(item)
    place = {item: n / len(part) for part in parts for n, item in enumerate(part)}
    items.sort(key=place.__getitem__)
