"""Subject templates: `orders.{tenant}.created`, filled in with what a request's path has. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from nats_backpressure.protocol.patterns import LONGEST_SUBJECT, literal_problem
from nats_backpressure.protocol.subjects import NAME

LONGEST_VALUE = 256
"""Characters of a value; a longer one makes no subject."""
_PARAMETER = re.compile(r"\{(\w+)\}")


def template_names(template: str) -> list[str]:
    """The names in it. Raises ValueError for what never becomes a subject."""
    if not isinstance(template, str):
        raise ValueError(f"the subject {template!r} is no text")
    literal = _PARAMETER.sub("x", template)
    if problem := literal_problem(literal):
        raise ValueError(f"the subject {template!r} {problem}")
    if "{" in literal or "}" in literal:
        raise ValueError(f"the subject {template!r} may have {{name}} for a value of the path, and no other braces")
    return _PARAMETER.findall(template)


def filled_in(template: str, parameters: Mapping[str, Any]) -> str | None:
    """The subject, with the dots that the values have; None if a value is missing, or makes no plain subject."""
    if "{" not in template:
        return template
    values = _values(template, parameters)
    if not all(map(_is_plain, values.values())):
        return None
    return _PARAMETER.sub(lambda match: values[match[1]], template)


def pattern_of(template: str, parameters: Mapping[str, Any]) -> str:
    """A pattern that matches what the template can become: `*` for a token with parameters, and `>` from one on whose
    value has dots."""
    values = _values(template, parameters)
    tokens: list[str] = []
    for token in template.split("."):
        names = _PARAMETER.findall(token)
        if any("." in values[name] for name in names):
            return ".".join([*tokens, ">"])
        tokens.append("*" if names else token)
    return ".".join(tokens)


def widened(subject: str) -> str:
    """A pattern that matches whatever was meant by what is no plain subject: `>` from the first token on that is
    none."""
    head = subject[: LONGEST_SUBJECT - len(".=3E")]
    tokens = head.split(".")
    if head != subject:  # the last token is cut, or no longer leaves room for the `>`
        del tokens[-1]
    plain = takewhile(lambda token: literal_problem(token) is None, tokens)
    return ".".join([*plain, ">"])


def _values(template: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(parameters.get(name, "")) for name in _PARAMETER.findall(template)}


def _is_plain(value: str) -> bool:
    return len(value) <= LONGEST_VALUE and all(map(NAME.fullmatch, value.split(".")))
