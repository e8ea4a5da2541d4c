"""Parses policies that do not come from the file: keys of the policy bucket, and the metadata of consumers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, json

from nats_backpressure.policy import parse
from nats_backpressure.policy.guard import CLOCKS_APART, guard_violations, override_violations
from nats_backpressure.policy.parse import (
    OverrideEntry,
    PolicyEntry,
    Value,
    check_inherited,
    check_together,
    flat_fields,
    parse_entry,
)
from nats_backpressure.policy.precedence import LayerEntry, Layers
from nats_backpressure.policy.schema import LARGEST_MARK, Guard, Override, Policy
from nats_backpressure.policy.validation import FieldProblem, Problems, join_path, read_partial, read_struct, shorten
from nats_backpressure.protocol import timestamps
from nats_backpressure.protocol.patterns import BadTail, decode, pattern_problem
from nats_backpressure.protocol.values import ConsumerKey

LARGEST_VALUE: Final = 64 * 1024
"""Bytes of one policy in the bucket; a larger one is refused unread."""
OVERRIDES: Final = "=override."
"""How the keys of overrides in the policy bucket begin. No encoded subject begins so."""
LARGEST_OVERRIDE: Final = 1024
"""Bytes of one override: all of them are read, whatever else the bucket holds."""
LONGEST_OVERRIDE: Final = 7 * 86_400.0
"""Seconds from the time it was stored to its end: a forgotten override must not last forever."""

OUR_PREFIX: Final = "backpressure"
"""The first token of the keys in a consumer's metadata that are fields of its policy."""
MONITOR_KEYS: Final = {
    "io.nats.monitor.outstanding-ack-critical": "inflight.overload",
    "io.nats.monitor.unprocessed-critical": "pending.overload",
}
"""Keys that the monitoring of the `nats` command takes for critical; 0 and below is no mark (jsm.go, monitor)."""

SWITCHED_OFF: Final = "{} in the bucket are switched off: the settings file has `policy_guard.allow_bucket: false`"

Scalar = str | int | float | bool | None
_JSON_SCALAR: Final[json.Decoder[Scalar]] = json.Decoder(Scalar)


class _Override(Struct, frozen=True, forbid_unknown_fields=True):
    action: Literal["open", "reject"]
    until: Annotated[str, Meta(max_length=64)]


def read_bucket_value(key: str, value: bytes, stored_at: float, problems: Problems) -> LayerEntry | None:
    """The policy or override under a key of the bucket, or None after adding all problems that it has by itself.

    `stored_at`: Unix seconds at which it was stored; an override must not last longer than LONGEST_OVERRIDE from then.
    """
    if key.startswith(OVERRIDES):
        return _read_override(key, value, stored_at, problems)
    subject = _subject(key, problems)
    document = None if problems else _decoded(value, problems)
    entry = None if problems else _document(document, problems)
    if entry is not None and problems.ignored and not entry.fields:
        problems.add("", "has no field that this version knows")
    return None if entry is None or problems else PolicyEntry((subject,), entry.consumers, entry.fields)


def check_bucket_entry(entry: LayerEntry, below: Layers, guard: Guard, problems: Problems) -> None:
    """Add what is wrong with a policy or override of the bucket above the layers `below`, under this guard."""
    override = isinstance(entry, OverrideEntry)
    if not guard.allow_bucket:
        problems.add("", SWITCHED_OFF.format("overrides" if override else "policies"))
    elif isinstance(entry, OverrideEntry):
        for field, rule in override_violations(entry, guard):
            problems.add(field, rule)
    else:
        for consumer in _representatives(entry):
            check_inherited(entry, below.effective(entry.subjects[0], consumer).policy, "", problems)
            if problems:
                break
        _check_guard(dict(entry.fields), guard, "", problems)


def _representatives(entry: PolicyEntry) -> list[ConsumerKey | None]:
    """Consumers that inherit what those of the entry do, None for all others; a pattern stands for itself."""
    return [None] if entry.applies(None) else [ConsumerKey("", name) for name in entry.consumers]


def _read_override(key: str, value: bytes, stored_at: float, problems: Problems) -> OverrideEntry | None:
    pattern = _subject(key.removeprefix(OVERRIDES), problems)
    document = None if problems else _decoded(value, problems, LARGEST_OVERRIDE)
    given = None if problems else read_struct(_Override, document, "", problems)
    if given is None:
        return None
    if problems.ignored:  # what is not known may make it narrower
        problems.add("", "an override with a field that is not known is refused, since it could apply to less")
        return None
    until = timestamps.parse_rfc3339(given.until)
    if until is None:
        problems.add("until", f"must be a time in UTC, as {timestamps.EXAMPLE}")
    elif until - stored_at > LONGEST_OVERRIDE + CLOCKS_APART:
        days = (until - stored_at) / 86_400
        problems.add(
            "until",
            f"must be at most 7 days ahead, is {days:,.1f} days; give a shorter time, then renew it",
        )
    else:
        return OverrideEntry(pattern, Override(given.action, until), until - stored_at)
    return None


def validate_document(document: dict[str, Any], guard: Guard) -> tuple[tuple[FieldProblem, ...], dict[str, Any] | None]:
    """The problems of a policy above the default, and the policy that results where there are none. The guard is for
    the bucket: a document with `subjects` can only be one of a file."""
    problems, effective = parse.validate_document(document)
    entry, _ = parse_entry(document, need_subjects=False)
    if entry is None or "subjects" in document:
        return problems, effective
    refused = Problems()
    if not guard.allow_bucket:
        refused.add("", SWITCHED_OFF.format("policies"))
    _check_guard(dict(entry.fields), guard, "", refused)
    return (*problems, *refused.listed()), None if refused else effective


def parse_metadata(
    metadata: Iterable[tuple[str, str]],
    below: Layers,
    guard: Guard,
    subjects: Sequence[str] = (),
    key: ConsumerKey | None = None,
    problems: Problems | None = None,
) -> PolicyEntry | tuple[FieldProblem, ...] | None:
    """The policy in a consumer's metadata, or all problems with it, or None where the metadata holds no policy.

    `below`: the layers of file and bucket. Marks are compared with what the consumer inherits under `subjects`; a mark
    that is too high for a subject not in that list is lowered, like an inherited one. An override is refused here: it
    would have priority over the operator's. `problems`, where it is given, shows what is ignored.
    """
    values = dict(metadata)
    problems = Problems() if problems is None else problems
    given = _monitor_marks(values, problems)
    named = {field: key for key, field in MONITOR_KEYS.items() if field in given}
    for name, text in values.items():
        if name.startswith(f"{OUR_PREFIX}."):
            ours = _field(name.removeprefix(f"{OUR_PREFIX}."), _scalar(text), problems)
            given |= ours
            named = {field: key for field, key in named.items() if field not in ours}
    check_together(given, OUR_PREFIX, problems)
    _check_guard(given, guard, OUR_PREFIX, problems)
    entry = PolicyEntry(fields=tuple(given.items()))
    for subject in subjects:
        check_inherited(entry, below.effective(subject, key).policy, OUR_PREFIX, problems)
    paths = {join_path(OUR_PREFIX, field): name for field, name in named.items()}
    listed = tuple(FieldProblem(paths.get(p.path, p.path), p.message) for p in problems.listed())
    if problems.ignored and not given:
        listed += (FieldProblem("", "has no field that this version knows"),)
    return tuple(dict.fromkeys(listed)) or (entry if given else None)


def _subject(key: str, problems: Problems) -> str:
    try:
        subject = decode(key)
    except BadTail as bad:
        problems.add("", f"the key is not an encoded subject or pattern: {bad}")
        return ""
    if (problem := pattern_problem(subject)) is not None:
        problems.add("", f"the key is the encoded form of `{shorten(subject)}`, which {problem}")
    return subject


def _decoded(value: bytes, problems: Problems, largest: int = LARGEST_VALUE) -> Any:
    if len(value) > largest:
        problems.add("", f"is larger than {largest:,} bytes")
        return None
    try:
        return json.decode(value)
    # A UnicodeDecodeError is a ValueError, as a DecodeError is.
    except (ValueError, RecursionError):
        problems.add("", "is not JSON")
        return None


def _document(document: object, problems: Problems) -> PolicyEntry | None:
    if isinstance(document, Mapping) and "subjects" in document:
        problems.add("subjects", "must not be here: the key says what the policy applies to; remove this field")
        document = {name: item for name, item in document.items() if name != "subjects"}
    return parse_entry(document, need_subjects=False, problems=problems)[0]


def _monitor_marks(metadata: Mapping[str, str], problems: Problems) -> dict[str, Value]:
    given: dict[str, Value] = {}
    for key, field in MONITOR_KEYS.items():
        mark = _scalar(metadata.get(key, "0"))
        if isinstance(mark, bool) or not isinstance(mark, int):
            problems.add(key, "must be a whole number")
        elif mark > LARGEST_MARK:
            problems.add(key, f"must be at most {LARGEST_MARK:,}")
        elif mark > 0:
            given[field] = mark
    return given


def _field(name: str, value: Scalar, problems: Problems) -> dict[str, Value]:
    """The policy field that one of our keys sets, by its dotted name."""
    head, _, leaf = name.partition(".")
    if head == "override":
        problems.add(
            join_path(OUR_PREFIX, name),
            "must not be set by a consumer: only operators may, with a key in the policy bucket",
        )
        return {}
    document: dict[str, Any] = {head: {leaf: value} if leaf else value}
    return dict(flat_fields(read_partial(Policy, document, OUR_PREFIX, problems)))


def _scalar(text: str) -> Scalar:
    """The value of a text that is a JSON number, true, false, null or quoted string; any other text is itself."""
    try:
        return _JSON_SCALAR.decode(text)
    except ValueError:
        return text


def _check_guard(given: Mapping[str, Value], guard: Guard, path: str, problems: Problems) -> None:
    for field, rule in guard_violations(given, guard):
        problems.add(join_path(path, field), rule)
