"""Policies from elsewhere than the file: keys of the bucket, and what consumers say of themselves, under the guard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, json

from nats_backpressure.policy.guard import guard_violations
from nats_backpressure.policy.parse import (
    OverrideEntry,
    PolicyEntry,
    Value,
    check_inherited,
    check_together,
    flat_fields,
    parse_entry,
)
from nats_backpressure.policy.precedence import Layers
from nats_backpressure.policy.schema import LARGEST_MARK, Guard, Override, Policy
from nats_backpressure.policy.validation import Problem, Problems, join_path, read_partial, read_struct, shorten
from nats_backpressure.protocol import timestamps
from nats_backpressure.protocol.patterns import BadTail, decode, pattern_problem
from nats_backpressure.protocol.values import ConsumerKey

LARGEST_VALUE: Final = 64 * 1024
"""Bytes of one policy in the bucket; a larger one is refused unread."""
OVERRIDES: Final = "=override."
"""What the keys of overrides in the policy bucket begin with: no subject encodes to it."""
LONGEST_OVERRIDE: Final = 7 * 86_400.0
"""Seconds from when it was put to its end: what is forgotten must not stand for ever."""
CLOCKS_APART: Final = 3600.0
"""Seconds by which the clock that wrote the end may be ahead of the server's."""

OUR_PREFIX: Final = "backpressure"
"""The first token of the keys in a consumer's metadata that are fields of its policy."""
MONITOR_KEYS: Final = {
    "io.nats.monitor.outstanding-ack-critical": "inflight.overload",
    "io.nats.monitor.unprocessed-critical": "pending.overload",
}
"""What the `nats` command's own monitoring takes for critical; at 0 and below it takes none (jsm.go, monitor)."""

Scalar = str | int | float | bool | None
_JSON_SCALAR: Final[json.Decoder[Scalar]] = json.Decoder(Scalar)


class _Override(Struct, frozen=True, forbid_unknown_fields=True):
    action: Literal["open", "reject"]
    until: Annotated[str, Meta(max_length=64)]


def parse_override(key: str, value: bytes, put_at: float, guard: Guard) -> OverrideEntry | tuple[Problem, ...]:
    """The override under a key of the bucket that begins with OVERRIDES, or everything that is wrong with it.

    `put_at` (Unix seconds) is when it was put: it must not last longer than LONGEST_OVERRIDE from then.
    """
    found = Problems()
    pattern = _subject(key.removeprefix(OVERRIDES), found)
    if not guard.allow_bucket:
        found.add("", "overrides in the bucket are switched off (policy_guard.allow_bucket)")
    elif len(value) > LARGEST_VALUE:
        found.add("", f"is larger than {LARGEST_VALUE:,} bytes")
    document = None if found else _decoded(value, found)
    given = None if found else read_struct(_Override, document, "", found)
    if given is None:
        return found.listed()
    until = timestamps.parse_rfc3339(given.until)
    if until is None:
        found.add("until", f"must be a moment in UTC, as {timestamps.EXAMPLE}")
    elif until - put_at > LONGEST_OVERRIDE + CLOCKS_APART:
        days = (until - put_at) / 86_400
        found.add("until", f"must be at most 7 days ahead, is {days:,.1f} days; put it again before it ends")
    else:
        return OverrideEntry(pattern, Override(given.action, until))
    return found.listed()


def parse_bucket_policy(key: str, value: bytes, below: Layers, guard: Guard) -> PolicyEntry | tuple[Problem, ...]:
    """The policy under a key of the bucket, or everything that is wrong with it; `below` is the file's layer."""
    found = Problems()
    subject = _subject(key, found)
    if not guard.allow_bucket:
        found.add("", "policies in the bucket are switched off (policy_guard.allow_bucket)")
    elif len(value) > LARGEST_VALUE:
        found.add("", f"is larger than {LARGEST_VALUE:,} bytes")
    elif not found and (entry := _document(value, found)) is not None:
        entry = PolicyEntry((subject,), entry.consumers, entry.fields)
        check_inherited(entry, below.effective(subject).policy, "", found)
        _hold(dict(entry.fields), guard, "", found)
        return found.listed() or entry
    return found.listed()


def parse_metadata(
    metadata: Iterable[tuple[str, str]],
    below: Layers,
    guard: Guard,
    subjects: Sequence[str] = (),
    key: ConsumerKey | None = None,
) -> PolicyEntry | tuple[Problem, ...] | None:
    """The policy a consumer's metadata gives it, everything that is wrong with that, or None where it gives none.

    `below` is the layers of file and bucket. Marks are held against what the consumer inherits under `subjects`; what
    it gives too high for one that is not named here is lowered like an inherited one. An override is no consumer's to
    give: it would go over the operator's.
    """
    said = dict(metadata)
    found = Problems()
    given = _theirs(said, found)
    named = {field: key for key, field in MONITOR_KEYS.items() if field in given}
    for name, text in said.items():
        if name.startswith(f"{OUR_PREFIX}."):
            ours = _field(name.removeprefix(f"{OUR_PREFIX}."), _scalar(text), found)
            given |= ours
            named = {field: key for field, key in named.items() if field not in ours}
    check_together(given, OUR_PREFIX, found)
    _hold(given, guard, OUR_PREFIX, found)
    entry = PolicyEntry(fields=tuple(given.items()))
    for subject in subjects:
        check_inherited(entry, below.effective(subject, key).policy, OUR_PREFIX, found)
    paths = {join_path(OUR_PREFIX, field): name for field, name in named.items()}
    problems = tuple(Problem(paths.get(p.path, p.path), p.message) for p in found.listed())
    return tuple(dict.fromkeys(problems)) or (entry if given else None)


def _subject(key: str, found: Problems) -> str:
    try:
        subject = decode(key)
    except BadTail as bad:
        found.add("", f"the key is no encoded subject or pattern: {bad}")
        return ""
    if (problem := pattern_problem(subject)) is not None:
        found.add("", f"the key stands for `{shorten(subject)}`, which {problem}")
    return subject


def _decoded(value: bytes, found: Problems) -> Any:
    try:
        return json.decode(value)
    # A UnicodeDecodeError is a ValueError, as a DecodeError is.
    except (ValueError, RecursionError):
        found.add("", "is not JSON")
        return None


def _document(value: bytes, found: Problems) -> PolicyEntry | None:
    before = len(found)
    document = _decoded(value, found)
    if len(found) > before:
        return None
    if isinstance(document, Mapping) and "subjects" in document:
        found.add("subjects", "must not stand here: the key says what the policy applies to")
        document = {name: item for name, item in document.items() if name != "subjects"}
    return parse_entry(document, need_subjects=False, found=found)[0]


def _theirs(said: Mapping[str, str], found: Problems) -> dict[str, Value]:
    given: dict[str, Value] = {}
    for key, field in MONITOR_KEYS.items():
        mark = _scalar(said.get(key, "0"))
        if isinstance(mark, bool) or not isinstance(mark, int):
            found.add(key, "must be a whole number")
        elif mark > LARGEST_MARK:
            found.add(key, f"must be at most {LARGEST_MARK:,}")
        elif mark > 0:
            given[field] = mark
    return given


def _field(name: str, value: Scalar, found: Problems) -> dict[str, Value]:
    """What one of our keys gives: a field by its dotted name."""
    head, _, leaf = name.partition(".")
    if head == "override":
        found.add(join_path(OUR_PREFIX, name), "no consumer may give this: it would go over the operator's")
        return {}
    document: dict[str, Any] = {head: {leaf: value} if leaf else value}
    return dict(flat_fields(read_partial(Policy, document, OUR_PREFIX, found)))


def _scalar(text: str) -> Scalar:
    """A value as JSON has it, where it is a number, true, false, null or quoted; otherwise the text itself."""
    try:
        return _JSON_SCALAR.decode(text)
    except ValueError:
        return text


def _hold(given: Mapping[str, Value], guard: Guard, path: str, found: Problems) -> None:
    for field, rule in guard_violations(given, guard):
        found.add(join_path(path, field), rule)
