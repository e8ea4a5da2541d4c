"""The policies in force while the sidecar runs: of file, bucket and consumers; the last good value of each stays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from msgspec import Struct
from msgspec.structs import asdict

from nats_backpressure.policy.external import check_bucket_entry, parse_metadata, read_bucket_value
from nats_backpressure.policy.guard import NO_GUARD, guard_allows
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry
from nats_backpressure.policy.precedence import LayerEntry, Layers, Sources, is_allowed
from nats_backpressure.policy.refusals import RefusedPolicy, errors_of, shown_subject
from nats_backpressure.policy.rejection_marks import bucket_mark
from nats_backpressure.policy.schema import Effective, Guard, Rejection
from nats_backpressure.policy.snapshot import PolicySnapshot
from nats_backpressure.policy.validation import FieldProblem, Problems, shorten
from nats_backpressure.protocol.values import ConsumerKey

LONGEST_NAME = 120
"""Characters of what names the consumer in a message about its metadata, before those of the message."""

NO_ROOM = "does not fit: the bucket holds as many bytes of policies as are read; remove what is no policy"
JUDGING_RULES = 5
"""The version of the rules by which a reading and a policy become a status; to be raised with each change of them.
Replicas of two versions that judge differently would take back what the other one writes."""

Metadata = tuple[tuple[str, str], ...]


class _LastGood(Struct, frozen=True):
    """For one key of the bucket: which value was read last, and the last good value. The values are not kept."""

    mark: str
    good: LayerEntry | None
    good_mark: str = ""
    """Which value `good` is."""
    refused: bool = False
    """Whether the value that was read last is refused."""
    read: LayerEntry | None = None
    """What that value says, where it is only refused because of the file above which it stands."""
    at: float = 0.0
    """When it was stored: a bucket that went back to a backup gives its revisions again."""


class _Own(Struct, frozen=True):
    """For one consumer: its metadata and the last good policy of it."""

    read: Metadata | None = ()
    """What was read last; None where it is to be checked again."""
    good: PolicyEntry | None = None
    told: RefusedPolicy | None = None
    """What was returned last about what was read."""


class ActivePolicies:
    """The layers of policies, replaced as a whole: `effective` never mixes an old and a new layer."""

    def __init__(self, file: Sequence[PolicyEntry], guard: Guard, trust_metadata: bool, watched: str = "") -> None:
        """`watched`: what is watched, as text; replicas that watch something else judge a subject by other members."""
        self._file, self._guard, self._trust, self._watched = tuple(file), guard, trust_metadata, watched
        self._bucket: dict[str, _LastGood] = {}
        self._ended = 0.0
        """Unix seconds; overrides that ended before are left out of the layers."""
        self._own: dict[ConsumerKey, _Own] = {}
        self.layers = Layers(self._file, (), guard)
        self.mark = self._file_mark()
        """Identifies the policies of the file, its guard, whether metadata is trusted, what is watched, the rules of
        judging, and the values of the bucket that a bad one has replaced: all that replicas of one installation may
        have different. What the bucket holds is common to all."""

    def _file_mark(self) -> str:
        # Without the defaults: a version with another setting in the guard shares the mark where that is not used.
        guard = [(name, value) for name, value in asdict(self._guard).items() if value != getattr(NO_GUARD, name)]
        judged_by: tuple[object, ...] = (JUDGING_RULES, self._file, guard, self._trust, self._watched)
        # A replica that has started since knows none of these.
        if replaced := sorted((key, last.good_mark) for key, last in self._bucket.items() if self._outlives(last)):
            judged_by = (*judged_by, replaced)
        return hashlib.sha256(repr(judged_by).encode()).hexdigest()[:12]

    def _outlives(self, last: _LastGood) -> bool:
        """Whether a value is in force that the bucket does not hold any more, or would be refused after a restart."""
        return last.refused and last.good is not None and is_allowed(last.good, self._guard)

    def effective(self, subject: str, key: ConsumerKey | None = None) -> Effective:
        """The policy of a consumer of a subject; without `key`, of the consumers that no entry names."""
        own = self._own.get(key) if key is not None else None
        return self.layers.effective(subject, key, own.good if own else None)

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
        self._bucket = {key: _LastGood("", good, "", read=good) for key, good in sources.bucket.items()}
        self.mark = self._file_mark()
        self._layer()
        self._own = self._to_check_again(tell_again=True) if self._trust else {}

    def set_file(self, file: Sequence[PolicyEntry], guard: Guard) -> list[RefusedPolicy]:
        """Replace the policies of the file; the layers above are checked again. Returns what is refused now."""
        return [refusal for refusal in self.file_steps(file, guard) if refusal is not None]

    def set_bucket(self, snapshot: PolicySnapshot) -> list[RefusedPolicy]:
        """Replace the policies of the bucket. Returns what is refused, once for each value of a key."""
        return [refusal for refusal in self.bucket_steps(snapshot) if refusal is not None]

    def file_steps(self, file: Sequence[PolicyEntry], guard: Guard) -> Iterator[RefusedPolicy | None]:
        """The same as `set_file` in short steps, of which each may return a refusal; the last one puts everything in
        force. Nothing else may be set before that."""
        below = Layers(tuple(file), (), guard)
        bucket: dict[str, _LastGood] = {}
        for key, last in self._bucket.items():
            bucket[key], refusal = self._checked(key, last.mark, last.at, last.read, Problems(), below, guard)
            yield refusal
        self._file, self._guard, self._bucket = tuple(file), guard, bucket
        self.mark = self._file_mark()
        self._own = self._to_check_again(tell_again=True)
        self._layer()

    def _to_check_again(self, *, tell_again: bool) -> dict[ConsumerKey, _Own]:
        """The policies of metadata above other layers: what the guard allows of them stays until the next reading of
        its consumer, which shows the subjects that it is checked under; a refusal of it is reported then."""
        return {
            key: _Own(
                None,
                own.good if own.good is not None and guard_allows(own.good.fields, self._guard) else None,
                None if tell_again else own.told,
            )
            for key, own in self._own.items()
        }

    def bucket_steps(self, snapshot: PolicySnapshot) -> Iterator[RefusedPolicy | None]:
        """The same as `set_bucket` in short steps, see `file_steps`."""
        below = Layers(self._file, (), self._guard)
        bucket: dict[str, _LastGood] = {}
        for key, value in snapshot.entries.items():
            mark = bucket_mark(snapshot.bucket, value.revision, value.fits)
            if (last := self._bucket.get(key)) is not None and (last.mark, last.at) == (mark, value.at):
                bucket[key] = last
                yield None
                continue
            problems = Problems(newer_allowed=True)
            if not value.fits:
                problems.add("", NO_ROOM)
            read = read_bucket_value(key, value.value, value.at, problems) if value.fits else None
            bucket[key], refusal = self._checked(key, mark, value.at, read, problems, below, self._guard)
            yield refusal
        before = self._policies()
        self._bucket = bucket
        self.mark = self._file_mark()
        self._layer()
        if self._policies() != before:
            self._own = self._to_check_again(tell_again=False)

    def _checked(
        self, key: str, mark: str, at: float, read: LayerEntry | None, problems: Problems, below: Layers, guard: Guard
    ) -> tuple[_LastGood, RefusedPolicy | None]:
        """What a value that was read comes to above these layers, and what is to be reported about it."""
        last = self._bucket.get(key)
        good, good_mark = (last.good, last.good_mark) if last is not None else (None, "")
        if read is not None:
            check_bucket_entry(read, below, guard, problems)
        refused = read is None or bool(problems)
        errors = errors_of(problems.listed() if refused else (), problems.ignored)
        kept = (good, good_mark) if refused else (read, mark)
        after = _LastGood(mark, *kept, refused, read, at)
        stays = refused and good is not None and is_allowed(good, guard)
        return after, RefusedPolicy(shown_subject(key), Rejection(mark, errors), not refused, stays) if errors else None

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
        overrides = [one for one in self._overrides() if one.override.until > self._ended]
        self.layers = Layers(self._file, self._policies(), self._guard, overrides)

    def _policies(self) -> list[PolicyEntry]:
        return [last.good for last in self._bucket.values() if isinstance(last.good, PolicyEntry)]

    def _overrides(self) -> list[OverrideEntry]:
        return [last.good for last in self._bucket.values() if isinstance(last.good, OverrideEntry)]

    def set_metadata(
        self, key: ConsumerKey, metadata: Metadata, subjects: Sequence[str]
    ) -> tuple[bool, RefusedPolicy | None]:
        """Whether the policy from the consumer's metadata is another now; and why it was refused if it was, or what is
        ignored of it."""
        own = self._own.get(key, _Own())
        if not self._trust or own.read == metadata:
            return False, None
        entry, problems, ignored = self._read_own(key, metadata, subjects)
        refusal = None
        if errors := errors_of(problems, ignored):
            of = shorten(f"metadata of {key.consumer} on {key.stream}", LONGEST_NAME)
            rejection = Rejection(_mark(key, metadata), tuple((path, f"{of}: {text}") for path, text in errors))
            refusal = RefusedPolicy("", rejection, not problems, bool(problems) and own.good is not None)
        self._own[key] = _Own(metadata, own.good if problems else entry, refusal)
        return not problems and entry != own.good, None if refusal == own.told else refusal

    def forget(self, key: ConsumerKey) -> None:
        """Forget the metadata of a consumer that is gone."""
        self._own.pop(key, None)

    def _read_own(
        self, key: ConsumerKey, metadata: Metadata, subjects: Sequence[str]
    ) -> tuple[PolicyEntry | None, tuple[FieldProblem, ...], list[FieldProblem]]:
        """The policy, all problems with it, and what is ignored of it."""
        problems = Problems(newer_allowed=True)
        result = parse_metadata(metadata, self.layers, self._guard, subjects, key, problems)
        return (None, result, problems.ignored) if isinstance(result, tuple) else (result, (), problems.ignored)


def _mark(key: ConsumerKey, metadata: Metadata) -> str:
    """Of one consumer: two with the same mistake are two refusals."""
    return hashlib.sha256(repr((key.stream, key.consumer, metadata)).encode()).hexdigest()[:16]
