"""Lists the entries of the policy bucket: what each one sets, since when, and what it governs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.cli.governed_subjects import governed_by, parse_policy, parse_stored_override
from nats_backpressure.cli.output import Row, format_value
from nats_backpressure.cli.policy_bucket import PolicyKey
from nats_backpressure.policy.external import OVERRIDES, read_bucket_value
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry, alert_documents
from nats_backpressure.policy.refusals import errors_of, shown_subject
from nats_backpressure.policy.snapshot import PolicyValue
from nats_backpressure.policy.validation import FieldProblem, Problems
from nats_backpressure.protocol.messages import Override, Status
from nats_backpressure.protocol.patterns import BadTail, covers, decode
from nats_backpressure.protocol.policies import EffectivePolicy
from nats_backpressure.protocol.timestamps import format_rfc3339

REFUSED = "refused"
"""No sidecar of this version takes it: that shows in the value alone."""
NOT_APPLIED = "not applied"
"""Valid here, and yet no sidecar goes by it: most often its guard refuses it, which only the sidecar knows."""
LAYERS = {
    "bucket": "a value of the bucket (stored there before, or of a wider pattern)",
    "file": "the settings file",
    "consumer": "the metadata of a consumer",
    "default": "the default",
}
"""What is in force in place of a policy, by the layers that its fields are from."""
POLICY_LIST = ("pattern", "sets", "stored at", "revision", "governs")
OVERRIDE_LIST = ("pattern", "action", "until", "state", "stored at", "governs")


class Listed(Struct, frozen=True):
    """One entry of the bucket."""

    pattern: str
    value: Any
    """As it is stored; None where it is no JSON."""
    state: str
    """`in force`: a subject that it governs shows it. `not applied`: none does. `stored`: there is none, or no sidecar
    answered. `ended` (an override), `refused`."""
    stored_at: str
    revision: int
    governs: tuple[str, ...] | None
    """Watched subjects; None where no sidecar answered which there are, or the entry is refused: those that have read a
    good one before keep that."""
    problems: tuple[str, ...] = ()
    """Why it is refused or not applied, or what of it is ignored, as far as that is known."""
    instead: str = ""
    """Of a policy that is refused or not applied: what is in force in its place."""


def listed(
    bucket: Mapping[str, PolicyValue],
    statuses: Sequence[Status] | None,
    covered_by: str | None,
    *,
    overrides: bool,
    now: float = 0.0,
) -> Iterator[Listed]:
    """The policies or the overrides in a bucket, by pattern; with `covered_by` those that it covers, or that cover
    it. `now`: for overrides, the server's time."""
    for key, value in sorted(bucket.items()):
        if key.startswith(OVERRIDES) is not overrides:
            continue
        at = format_rfc3339(value.at)
        try:
            pattern = decode(key.removeprefix(OVERRIDES))
        except BadTail:  # governs nothing, so nothing covers it
            if covered_by is None:
                yield Listed(shown_subject(key), None, REFUSED, at, value.revision, None, _problems(key, value, now)[1])
            continue
        if covered_by is None or covers(covered_by, pattern) or covers(pattern, covered_by):
            governed = statuses and governed_by(statuses, PolicyKey(pattern, overrides), bucket, now).governed
            governs = None if statuses is None else tuple(governed or ())
            is_good, problems = _problems(key, value, now)
            if overrides:
                state, governs = _override_state(parse_stored_override(key, value, now), now, statuses, governs)
            else:
                state = "stored" if is_good else REFUSED
            governs = None if state == REFUSED else governs
            yield Listed(pattern, _decoded(value.value), state, at, value.revision, governs, problems)


def _problems(key: str, value: PolicyValue, now: float) -> tuple[bool, tuple[str, ...]]:
    """Whether a sidecar takes a value, by itself, and what it reports about it."""
    problems = Problems(newer_allowed=not key.startswith(OVERRIDES))
    entry = read_bucket_value(key, value.value, value.at or now, problems)
    errors = errors_of(problems.listed(), problems.ignored)
    return entry is not None, tuple(FieldProblem(path, message).line for path, message in errors)


def with_policy(entry: Listed, effective: EffectivePolicy) -> Listed:
    """The entry of a policy, given the policy in force for a subject that it covers."""
    if entry.state == REFUSED:
        return replace(entry, instead=_layers_in_force(effective))
    fields = _fields(msgspec.json.encode(entry.value))
    in_force = [(effective.policy, effective.sources), *((each.policy, each.sources) for each in effective.consumers)]
    if any(_is_in_force(fields, policy, sources) for policy, sources in in_force):
        return replace(entry, state="in force")
    return replace(entry, state=NOT_APPLIED, governs=(), instead=_layers_in_force(effective))


def _layers_in_force(effective: EffectivePolicy) -> str:
    sources = set(effective.sources.values())
    return f"{effective.subject}: " + ", ".join(text for source, text in LAYERS.items() if source in sources)


def _is_in_force(fields: Mapping[str, Any], policy: Mapping[str, Any], sources: Mapping[str, str]) -> bool:
    """Whether fields of the bucket are in force, but for those that the metadata of a consumer replaces."""
    for name, value in fields.items():
        source = sources.get(name)
        if source == "consumer" or name == "consumers":
            continue
        group, _, member = name.partition(".")
        has = (policy.get(group) or {}).get(member) if member else policy.get(group)
        if source != "bucket" or (isinstance(value, int | float | str) and has != value):
            return False
    return True


def _override_state(
    entry: OverrideEntry | None, now: float, statuses: Sequence[Status] | None, governs: tuple[str, ...] | None
) -> tuple[str, tuple[str, ...] | None]:
    """The state of an override, and what it governs, as the statuses show it."""
    if entry is None:
        return REFUSED, governs
    if entry.override.until <= now:
        return "ended", governs and ()
    if not statuses or not governs:
        return "stored", governs
    as_shown = Override(entry.override.action, format_rfc3339(entry.override.until))
    showing = {status.subject for status in statuses if status.override == as_shown}
    applied = tuple(subject for subject in governs if subject in showing)
    return "in force" if applied else NOT_APPLIED, applied


def policy_row(entry: Listed, watched: int) -> Row:
    sets = [entry.state] if entry.state == REFUSED else changes(None, msgspec.json.encode(entry.value))
    if entry.state == NOT_APPLIED:
        sets = [f"{NOT_APPLIED}: {'; '.join(sets)}"]
    return entry.pattern, "; ".join(sets), entry.stored_at, str(entry.revision), _governs(entry, watched)


def override_row(entry: Listed, watched: int) -> Row:
    value = entry.value if entry.state != REFUSED else {}
    action, until = str(value.get("action", "-")), str(value.get("until", "-"))
    return entry.pattern, action, until, entry.state, entry.stored_at, _governs(entry, watched)


def changes(before: bytes | None, after: bytes) -> list[str]:
    """What a policy sets that another one did not, field by field, and what it sets no more. Without a policy before,
    what it sets."""
    old, new = _fields(before), _fields(after)
    if before is None:
        return [f"{name} {format_value(value)}" for name, value in new.items()]
    lines = []
    for name in dict.fromkeys([*old, *new]):
        was, now = (format_value(each[name]) if name in each else "(inherited)" for each in (old, new))
        if was != now:
            lines.append(f"{name}: {was} -> {now}")
    return lines


def _fields(value: bytes | None) -> dict[str, Any]:
    entry = (parse_policy(value) if value else None) or PolicyEntry()
    consumers = {} if entry.consumers == ("*",) else {"consumers": ", ".join(entry.consumers)}
    return consumers | {
        name: alert_documents(field) if isinstance(field, tuple) else field for name, field in entry.fields
    }


def _decoded(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _governs(entry: Listed, watched: int) -> str:
    return "?" if entry.governs is None else f"{len(entry.governs):,} of {watched:,}"
