"""Refused policies, and what is reported of what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from nats_backpressure.policy.external import OVERRIDES
from nats_backpressure.policy.schema import Rejection
from nats_backpressure.policy.validation import FieldProblem, shorten
from nats_backpressure.protocol.subjects import BadTail, decode

MOST_ERRORS, LONGEST_ERROR = 20, 300
"""Of a refused policy: problems that are reported, and characters of the path or message of each."""

IGNORED = "ignored, the rest is in force"


class RefusedPolicy(Struct, frozen=True):
    """A policy that was refused, or of which something was ignored."""

    subject: str
    """The decoded key, see `shown_subject`; empty for metadata, which counts under each subject of its consumer."""
    rejection: Rejection
    in_force: bool = False
    """Whether the policy is in force but for what `rejection` names: a newer version knows that."""
    stays: bool = False
    """Whether an earlier value is in force in its place: until the process ends, as it can be read nowhere."""


def shown_subject(key: str) -> str:
    """The decoded key, with the prefix of overrides; the key itself where it is no encoded subject."""
    prefix = OVERRIDES if key.startswith(OVERRIDES) else ""
    try:
        return prefix + decode(key.removeprefix(prefix))
    except BadTail:
        return key


def errors_of(problems: Sequence[FieldProblem], ignored: Sequence[FieldProblem]) -> tuple[tuple[str, str], ...]:
    """What is reported about a policy that is refused, or in force without what is not known."""
    if problems:
        return _bounded((*problems, *ignored))
    return _bounded([FieldProblem(each.path, f"{each.message}; {IGNORED}") for each in ignored])


def _bounded(problems: Sequence[FieldProblem]) -> tuple[tuple[str, str], ...]:
    """As much of the problems as fits into a record and its event: the writer of the policy chose their length."""
    errors = tuple((_short(problem.path), _short(problem.message)) for problem in problems[:MOST_ERRORS])
    more = len(problems) - len(errors)
    return (*errors, ("", f"and {more} more problems")) if more > 0 else errors


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_ERROR and text.isprintable() else shorten(text, LONGEST_ERROR)
