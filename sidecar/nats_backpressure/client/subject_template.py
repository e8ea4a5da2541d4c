"""Subject templates: `orders.{tenant}.created`, filled in with what a request's path has. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nats_backpressure.protocol.patterns import literal_problem
from nats_backpressure.protocol.subjects import NAME

_PARAMETER = re.compile(r"\{(\w+)\}")


def template_names(template: str) -> list[str]:
    """The names in it. Raises ValueError for what never becomes a subject."""
    if problem := literal_problem(_PARAMETER.sub("x", template)):
        raise ValueError(f"the subject {template!r} {problem}")
    return _PARAMETER.findall(template)


def filled_in(template: str, parameters: Mapping[str, Any]) -> str | None:
    """The subject; None if a value is missing, or no single token of a subject."""
    if "{" not in template:
        return template
    values = {name: str(parameters.get(name, "")) for name in _PARAMETER.findall(template)}
    if not all(map(NAME.fullmatch, values.values())):
        return None
    return _PARAMETER.sub(lambda match: values[match[1]], template)
