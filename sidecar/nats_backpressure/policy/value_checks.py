"""Checks single values of a document: true or false, numbers and text, against their type and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from typing import Annotated, Any, Final

from msgspec import Meta, ValidationError, convert, inspect

LARGEST: Final = 2**53
"""Larger whole numbers are rounded by many JSON libraries."""


def value_problem(shape: inspect.Type, value: object) -> str | None:
    """The problem with a single value, if any. Text is not repeated: it could be a secret in the wrong place."""
    match shape:
        case inspect.BoolType():
            return None if isinstance(value, bool) else f"must be true or false, not {kind_of(value)}"
        case inspect.IntType():
            if isinstance(value, bool) or not isinstance(value, int):
                return f"must be a whole number, not {kind_of(value)}"
            return _bounds(shape, value)
        case inspect.FloatType():
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"must be a number, not {kind_of(value)}"
            return _bounds(shape, value)
        case inspect.StrType():
            return _text(shape, value) if isinstance(value, str) else f"must be text, not {kind_of(value)}"
    raise TypeError(f"a document cannot have a value of {shape}")


def kind_of(value: object) -> str:
    """The kind of a value, as the author of the document would call it."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return "a whole number"
        case float():
            return "a number"
        case str():
            return "text"
        case list() | tuple():
            return "a list"
        case Mapping():
            return "a mapping"
    return "something else"


def _bounds(shape: inspect.IntType | inspect.FloatType, value: float) -> str | None:
    if isinstance(value, float) and not isfinite(value):
        return "must be a finite number"
    if abs(value) > LARGEST:
        return "is too large a number"
    for bound, word, broken in (
        (shape.gt, "above", shape.gt is not None and value <= shape.gt),
        (shape.ge, "at least", shape.ge is not None and value < shape.ge),
        (shape.lt, "below", shape.lt is not None and value >= shape.lt),
        (shape.le, "at most", shape.le is not None and value > shape.le),
    ):
        if broken:
            return f"must be {word} {bound:,}, is {value:,}"
    return None


def _text(shape: inspect.StrType, value: str) -> str | None:
    if shape.min_length is not None and len(value) < shape.min_length:
        return "must not be empty"
    if shape.max_length is not None and len(value) > shape.max_length:
        return f"must have at most {shape.max_length} characters, has {len(value)}"
    if not value.isprintable():
        return "must not hold control characters"
    if shape.pattern is not None and not _matches(shape.pattern, value):
        return f"must match {shape.pattern.removesuffix(chr(92) + 'Z').removeprefix('^')}"
    return None


def _matches(pattern: str, value: str) -> bool:
    try:
        convert(value, _matching(pattern))
    except ValidationError:
        return False
    return True


@lru_cache(maxsize=64)
def _matching(pattern: str) -> Any:
    return Annotated[str, Meta(pattern=pattern)]
