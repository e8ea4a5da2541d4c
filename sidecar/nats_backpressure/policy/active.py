"""The policies in force while the sidecar runs: of file, bucket and consumers; the last good value of each stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from msgspec import Struct

from nats_backpressure.policy.external import OVERRIDES, parse_bucket_policy, parse_metadata, parse_override
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry
from nats_backpressure.policy.precedence import LayerEntry, Layers, Sources
from nats_backpressure.policy.schema import Effective, Guard, Rejection
from nats_backpressure.policy.validation import Problem, shorten
from nats_backpressure.protocol.subjects import BadTail, decode
from nats_backpressure.protocol.values import ConsumerKey

MOST_ERRORS, LONGEST_ERROR = 20, 300
"""Of a refused policy: problems that are reported, and characters of the path or message of each."""

JUDGING_RULES = 3
"""The version of the rules by which a reading and a policy become a status; to be raised with each change of them.
Replicas of two versions that judge differently would take back what the other one writes."""

Metadata = tuple[tuple[str, str], ...]


class Refusal(Struct, frozen=True):
    """A policy that was refused."""

    subject: str
    """The decoded key, see `_subject`."""
    rejection: Rejection


class _LastGood(Struct):
    """For one key of the bucket: which value was read last, and the last good value."""

    mark: str
    good: LayerEntry | None
    refused: bool = False
    """Whether the value that was read last is refused."""


class ActivePolicies:
    """The layers of policies, replaced as a whole: `effective` never mixes an old and a new layer."""

    def __init__(self, file: Sequence[PolicyEntry], guard: Guard, trust_metadata: bool, watched: str = "") -> None:
        """`watched`: what is watched, as text; replicas that watch something else judge a subject by other members."""
        self._file, self._guard, self._trust, self._watched = tuple(file), guard, trust_metadata, watched
        self._bucket: dict[str, _LastGood] = {}
        self._ended = 0.0
        """Unix seconds; overrides that ended before are left out of the layers."""
        self._snapshot = PolicySnapshot("", {})
        self._own: dict[ConsumerKey, tuple[Metadata, PolicyEntry | None]] = {}
        self.layers = Layers(self._file, (), guard)
        self.mark = self._file_mark()
        """Identifies the policies of the file, its guard, whether metadata is trusted, what is watched, and the rules
        of judging: all that replicas of one installation may have different. The bucket is common to all."""

    def _file_mark(self) -> str:
        judged_by = (JUDGING_RULES, self._file, self._guard, self._trust, self._watched)
        return hashlib.sha256(repr(judged_by).encode()).hexdigest()[:12]

    def effective(self, subject: str, key: ConsumerKey | None = None) -> Effective:
        """The policy of a consumer of a subject; without `key`, of the consumers that no entry names."""
        own = self._own.get(key) if key is not None else None
        return self.layers.effective(subject, key, own[1] if own else None)

    @property
    def sources(self) -> Sources:
        """What is in force now, in the form that `restore` takes."""
        bucket = {key: last.good for key, last in self._bucket.items() if last.good is not None}
        return Sources(self._file, bucket, self._guard, self._trust)

    @property
    def refused(self) -> int:
        """Keys of the bucket whose value is refused. May be called on another thread."""
        return sum(last.refused for last in tuple(self._bucket.values()))

    def restore(self, sources: Sources) -> None:
        """Put in force what `sources` returned earlier."""
        self._file, self._guard, self._trust = sources.file, sources.guard, sources.trust_metadata
        self._bucket = {key: _LastGood("", good) for key, good in sources.bucket.items()}
        self.mark = self._file_mark()
        self._layer()
        own = self._own if self._trust else {}
        self._own = {key: (metadata, self._read_own(key, metadata, ())[0]) for key, (metadata, _) in own.items()}

    def set_file(self, file: Sequence[PolicyEntry], guard: Guard) -> list[Refusal]:
        """Replace the policies of the file; the layers above are checked again. Returns what is refused now."""
        return [refusal for refusal in self.file_steps(file, guard) if refusal is not None]

    def set_bucket(self, snapshot: PolicySnapshot) -> list[Refusal]:
        """Replace the policies of the bucket. Returns what is refused, once for each value of a key."""
        return [refusal for refusal in self.bucket_steps(snapshot) if refusal is not None]

    def file_steps(self, file: Sequence[PolicyEntry], guard: Guard) -> Iterator[Refusal | None]:
        """The same as `set_file` in short steps, of which each may return a refusal; the last one puts everything in
        force. Nothing else may be set before that."""
        yield from self._steps(tuple(file), guard, self._snapshot, again=True)

    def bucket_steps(self, snapshot: PolicySnapshot) -> Iterator[Refusal | None]:
        """The same as `set_bucket` in short steps, see `file_steps`."""
        yield from self._steps(self._file, self._guard, snapshot, again=False)

    def _steps(
        self, file: tuple[PolicyEntry, ...], guard: Guard, snapshot: PolicySnapshot, *, again: bool
    ) -> Iterator[Refusal | None]:
        below = Layers(file, (), guard)
        bucket: dict[str, _LastGood] = {}
        for key, value in snapshot.entries.items():
            mark = f"{snapshot.bucket}:{value.revision}"
            last = self._bucket.get(key) or _LastGood("", None)
            problems: tuple[Problem, ...] = ()
            if again or last.mark != mark:
                good, problems = _parse_value(key, value, below, guard)
                last = _LastGood(mark, last.good if problems else good, bool(problems))
            bucket[key] = last
            yield Refusal(_subject(key), Rejection(mark, _bounded(problems))) if problems else None
        self._file, self._guard, self._snapshot, self._bucket = file, guard, snapshot, bucket
        if again:
            self.mark = self._file_mark()
            own = self._own.items()
            self._own = {key: (metadata, self._read_own(key, metadata, ())[0]) for key, (metadata, _) in own}
        self._layer()

    def expire(self, wall: float) -> bool:
        """Leave out the overrides that ended by `wall` (Unix seconds), and take back those that did not: the clock may
        have been set back. Returns whether policies change by that."""
        earlier, later = sorted((self._ended, wall))
        self._ended = wall
        changed = any(earlier < one.override.until <= later for one in self._overrides())
        if changed:
            self._layer()
        return changed

    def _layer(self) -> None:
        policies = [last.good for last in self._bucket.values() if isinstance(last.good, PolicyEntry)]
        overrides = [one for one in self._overrides() if one.override.until > self._ended]
        self.layers = Layers(self._file, policies, self._guard, overrides)

    def _overrides(self) -> list[OverrideEntry]:
        return [last.good for last in self._bucket.values() if isinstance(last.good, OverrideEntry)]

    def set_metadata(
        self, key: ConsumerKey, metadata: Metadata, subjects: Sequence[str]
    ) -> tuple[bool, Rejection | None]:
        """Whether the policy from the consumer's metadata is another now, and why it was refused if it was."""
        had = self._own.get(key)
        if not self._trust or (had[0] if had else ()) == metadata:
            return False, None
        entry, problems = self._read_own(key, metadata, subjects)
        if problems:
            self._own[key] = (metadata, had[1] if had else None)
            return False, Rejection(_mark(metadata), _bounded(problems))
        self._own[key] = (metadata, entry)
        return True, None

    def forget(self, key: ConsumerKey) -> None:
        """Forget the metadata of a consumer that is gone."""
        self._own.pop(key, None)

    def _read_own(
        self, key: ConsumerKey, metadata: Metadata, subjects: Sequence[str]
    ) -> tuple[PolicyEntry | None, tuple[Problem, ...]]:
        result = parse_metadata(metadata, self.layers, self._guard, subjects, key)
        return (None, result) if isinstance(result, tuple) else (result, ())


def _parse_value(
    key: str, value: PolicyValue, below: Layers, guard: Guard
) -> tuple[LayerEntry | None, tuple[Problem, ...]]:
    result: LayerEntry | tuple[Problem, ...]
    if key.startswith(OVERRIDES):
        result = parse_override(key, value.value, value.at, guard)
    else:
        result = parse_bucket_policy(key, value.value, below, guard)
    return (None, result) if isinstance(result, tuple) else (result, ())


def _subject(key: str) -> str:
    """The decoded key, with the prefix of overrides; the key itself where it is no encoded subject."""
    prefix = OVERRIDES if key.startswith(OVERRIDES) else ""
    try:
        return prefix + decode(key.removeprefix(prefix))
    except BadTail:
        return key


def _bounded(problems: Sequence[Problem]) -> tuple[tuple[str, str], ...]:
    """As much of the problems as fits into a record and its event: the writer of the policy chose their length."""
    errors = tuple((_short(problem.path), _short(problem.message)) for problem in problems[:MOST_ERRORS])
    more = len(problems) - len(errors)
    return (*errors, ("", f"and {more} more problems")) if more > 0 else errors


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_ERROR and text.isprintable() else shorten(text, LONGEST_ERROR)


def _mark(metadata: Metadata) -> str:
    return hashlib.sha256(repr(metadata).encode()).hexdigest()[:16]


class PolicyValue(Struct, frozen=True):
    """One key's value in the policy bucket."""

    value: bytes
    revision: int
    at: float = 0.0
    """Unix seconds at which the server stored it."""


class PolicySnapshot(Struct, frozen=True):
    """The whole policy bucket at one moment."""

    bucket: str
    """When the bucket was created, which distinguishes it from another bucket of the same name."""
    entries: dict[str, PolicyValue]
    """By key as it is in the bucket (an encoded subject or pattern). Treated as frozen."""
