"""The policies in force while we run: the file's, the bucket's, the consumers' own; the last good of each stays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from msgspec import Struct

from nats_backpressure.policy.external import OVERRIDES, parse_bucket_policy, parse_metadata, parse_override
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry
from nats_backpressure.policy.precedence import LayerEntry, Layers, Sources
from nats_backpressure.policy.schema import Effective, Guard, Rejection
from nats_backpressure.policy.validation import Problem, shorten
from nats_backpressure.protocol.subjects import BadTail, decode
from nats_backpressure.protocol.values import ConsumerKey

MOST_ERRORS, LONGEST_ERROR = 20, 300
"""Of a refused policy: mistakes that are reported, and characters of a path or message of each."""

Metadata = tuple[tuple[str, str], ...]


class Refusal(Struct, frozen=True):
    """A policy that was refused, under the key it stands under."""

    subject: str
    rejection: Rejection


class _LastGood(Struct):
    """A key of the bucket: which value was read last, and the last good one."""

    mark: str
    good: LayerEntry | None


class ActivePolicies:
    """What is in force changes as a whole: whoever reads `effective` sees one moment."""

    def __init__(self, file: Sequence[PolicyEntry], guard: Guard, trust_metadata: bool) -> None:
        self._file, self._guard, self._trust = tuple(file), guard, trust_metadata
        self._bucket: dict[str, _LastGood] = {}
        self._ended = 0.0
        """Unix seconds; overrides that ended before are left out."""
        self._snapshot = PolicySnapshot("", {})
        self._own: dict[ConsumerKey, tuple[Metadata, PolicyEntry | None]] = {}
        self.layers = Layers(self._file, (), guard)

    def effective(self, subject: str, key: ConsumerKey | None = None) -> Effective:
        """For a consumer of a watched subject; without one, for those that no entry singles out."""
        own = self._own.get(key) if key is not None else None
        return self.layers.effective(subject, key, own[1] if own else None)

    @property
    def sources(self) -> Sources:
        """What is in force now, for whoever wants to put the same in force again."""
        bucket = {key: kept.good for key, kept in self._bucket.items() if kept.good is not None}
        return Sources(self._file, bucket, self._guard, self._trust)

    def restore(self, sources: Sources) -> None:
        """Put in force what once was."""
        self._file, self._guard, self._trust = sources.file, sources.guard, sources.trust_metadata
        self._bucket = {key: _LastGood("", good) for key, good in sources.bucket.items()}
        self._layer()
        own = self._own if self._trust else {}
        self._own = {key: (said, self._read_own(key, said, ())[0]) for key, (said, _) in own.items()}

    def set_file(self, file: Sequence[PolicyEntry], guard: Guard) -> list[Refusal]:
        """The file's policies are these now; what stands above them is judged anew."""
        self._file, self._guard = tuple(file), guard
        for kept in self._bucket.values():
            kept.mark = ""
        self._own = {key: (said, self._read_own(key, said, ())[0]) for key, (said, _) in self._own.items()}
        return self.set_bucket(self._snapshot)

    def set_bucket(self, snapshot: PolicySnapshot) -> list[Refusal]:
        """The bucket holds this now. What it is refused for is told once for each value of a key."""
        self._snapshot = snapshot
        below = Layers(self._file, (), self._guard)
        refused: list[Refusal] = []
        bucket: dict[str, _LastGood] = {}
        for key, value in snapshot.entries.items():
            mark = f"{snapshot.bucket}:{value.revision}"
            kept = self._bucket.get(key) or _LastGood("", None)
            if kept.mark != mark:
                good, problems = _parsed(key, value, below, self._guard)
                if problems:
                    refused.append(Refusal(_subject(key), Rejection(mark, _told(problems))))
                kept = _LastGood(mark, kept.good if problems else good)
            bucket[key] = kept
        self._bucket = bucket
        self._layer()
        return refused

    def expire(self, wall: float) -> bool:
        """Leave out the overrides that are over by now. True if there are any: who was under them is judged anew."""
        if not any(self._ended < one.override.until <= wall for one in self._overrides()):
            return False
        self._ended = wall
        self._layer()
        return True

    def _layer(self) -> None:
        policies = [kept.good for kept in self._bucket.values() if isinstance(kept.good, PolicyEntry)]
        overrides = [one for one in self._overrides() if one.override.until > self._ended]
        self.layers = Layers(self._file, policies, self._guard, overrides)

    def _overrides(self) -> list[OverrideEntry]:
        return [kept.good for kept in self._bucket.values() if isinstance(kept.good, OverrideEntry)]

    def set_metadata(
        self, key: ConsumerKey, metadata: Metadata, subjects: Sequence[str]
    ) -> tuple[bool, Rejection | None]:
        """Whether the consumer's own policy is another now, and what is wrong with what it says."""
        had = self._own.get(key)
        if not self._trust or (had[0] if had else ()) == metadata:
            return False, None
        entry, problems = self._read_own(key, metadata, subjects)
        if problems:
            self._own[key] = (metadata, had[1] if had else None)
            return False, Rejection(_mark(metadata), _told(problems))
        self._own[key] = (metadata, entry)
        return True, None

    def forget(self, key: ConsumerKey) -> None:
        self._own.pop(key, None)

    def _read_own(
        self, key: ConsumerKey, metadata: Metadata, subjects: Sequence[str]
    ) -> tuple[PolicyEntry | None, tuple[Problem, ...]]:
        found = parse_metadata(metadata, self.layers, self._guard, subjects, key)
        return (None, found) if isinstance(found, tuple) else (found, ())


def _parsed(key: str, value: PolicyValue, below: Layers, guard: Guard) -> tuple[LayerEntry | None, tuple[Problem, ...]]:
    found: LayerEntry | tuple[Problem, ...]
    if key.startswith(OVERRIDES):
        found = parse_override(key, value.value, value.at, guard)
    else:
        found = parse_bucket_policy(key, value.value, below, guard)
    return (None, found) if isinstance(found, tuple) else (found, ())


def _subject(key: str) -> str:
    """What the key stands for, an override's behind its prefix; one that is no subject stands for itself."""
    prefix = OVERRIDES if key.startswith(OVERRIDES) else ""
    try:
        return prefix + decode(key.removeprefix(prefix))
    except BadTail:
        return key


def _told(problems: Sequence[Problem]) -> tuple[tuple[str, str], ...]:
    """Of what is wrong what fits into a record and its event: whoever wrote it chose its length."""
    errors = tuple((_short(problem.path), _short(problem.message)) for problem in problems[:MOST_ERRORS])
    more = len(problems) - len(errors)
    return (*errors, ("", f"and {more} more problems")) if more > 0 else errors


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_ERROR and text.isprintable() else shorten(text, LONGEST_ERROR)


def _mark(metadata: Metadata) -> str:
    return hashlib.sha256(repr(metadata).encode()).hexdigest()[:16]


class PolicyValue(Struct, frozen=True):
    value: bytes
    revision: int
    at: float = 0.0
    """Unix seconds at which the server stored it."""


class PolicySnapshot(Struct, frozen=True):
    """The whole policy bucket at one moment."""

    bucket: str
    """When the bucket was created: another one is another bucket."""
    entries: dict[str, PolicyValue]
    """By key, as it stands in the bucket (an encoded subject or pattern). Treated as frozen."""
