"""Placeholder until the policies' helper replaces this file."""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.core.document import Problem
from sidecar.core.model import ConsumerKey
from sidecar.core.policy import PolicyEntry, effective
from sidecar.core.rules import Effective, Guard


class Layers:
    def __init__(self, file: Sequence[PolicyEntry] = (), bucket: Sequence[PolicyEntry] = (), guard: Guard = Guard()):
        self._layers = {"file": file, "bucket": bucket}

    def effective(self, subject: str, key: ConsumerKey | None = None, own: PolicyEntry | None = None) -> Effective:
        return effective(self._layers, subject, key.consumer if key else None)


def bucket_entry(key: str, value: bytes, below: Layers, guard: Guard) -> PolicyEntry | tuple[Problem, ...]:
    return ()


def metadata_entry(
    metadata: tuple[tuple[str, str], ...], below: Layers, guard: Guard
) -> PolicyEntry | tuple[Problem, ...] | None:
    return None
