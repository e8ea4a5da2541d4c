"""From a plain value that nobody vouches for (YAML, JSON) to frozen Structs, with every mistake named by its path.

msgspec itself stops at the first mistake; whoever edits a file wants them all. The walk follows the types, never the
value, so a hostile document can neither nest deeper than the types do nor be walked where nothing is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from math import isfinite
from typing import Annotated, Any, Final, TypeVar, cast

from msgspec import Meta, Struct, ValidationError, convert, inspect

T = TypeVar("T", bound=Struct)
Suggest = Callable[[str, Sequence[str]], str | None]

LIMIT: Final = 50
"""Problems told in full; the rest is only counted."""
LARGEST: Final = 2**53
"""Numbers beyond this lose whole units on their way through other people's JSON."""
LONGEST_SHOWN: Final = 60
"""Characters of something from the document that are repeated in a message."""
BAD: Final = object()


class Problem(Struct, frozen=True):
    """One mistake: where (`policies[0].pending.warn`, empty for the whole document) and which rule it breaks."""

    path: str
    message: str

    @property
    def line(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class Problems:
    """The mistakes in the order they were found: the first LIMIT in full, the others counted.

    `suggest` may name the known key that an unknown one was meant to be.
    """

    def __init__(self, suggest: Suggest = lambda key, known: None) -> None:
        self.suggest = suggest
        self._first: list[Problem] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, path: str, message: str) -> None:
        self._count += 1
        if self._count <= LIMIT:
            self._first.append(Problem(path, message))

    def has_path(self, path: str) -> bool:
        """Whether something told is wrong just there."""
        return any(problem.path == path for problem in self._first)

    def listed(self) -> tuple[Problem, ...]:
        more = self._count - LIMIT
        return (*self._first, Problem("", f"and {more} more problems")) if more > 0 else tuple(self._first)


def read_struct(cls: type[T], value: object, path: str, found: Problems) -> T | None:
    """`value` as a `cls`, or None after saying everything that is wrong with it."""
    before = len(found)
    given = _walk(_shape(cls), value, path, found, partial=False)
    return cast(T, given) if len(found) == before else None


def read_with_defaults(cls: type[T], value: object, path: str, found: Problems) -> T:
    """Like `read_struct`, with the default for each field that is wrong or missing, so that the rest can be checked."""
    given = _fields(_shape(cls), value, path, found, partial=False)
    return cls(**{name: item for name, item in given.items() if item is not BAD})


def read_partial(cls: type[Struct], value: object, path: str, found: Problems) -> dict[str, Any]:
    """Only what `value` gives of the fields of `cls`, nested Structs as dicts: nothing is required, no default set."""
    given = _walk(_shape(cls), value, path, found, partial=True)
    return {} if given is BAD else given


def join_path(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def shorten(text: str, longest: int = LONGEST_SHOWN) -> str:
    """Something from outside, fit for one line of text."""
    # `ascii` leaves nothing that a terminal or a log could take for more than text.
    text = ascii(text[: longest + 1])[1:-1]
    return text if len(text) <= longest else text[:longest] + "..."


@lru_cache(maxsize=64)
def _shape(cls: type[Struct]) -> inspect.Type:
    return inspect.type_info(cls)


def _walk(shape: inspect.Type, value: object, path: str, found: Problems, partial: bool) -> Any:
    match shape:
        case inspect.StructType():
            return _struct(shape, value, path, found, partial)
        case inspect.VarTupleType():
            return _sequence(shape, value, path, found)
        case inspect.UnionType():
            if value is None and shape.includes_none:
                return None
            # What may be null is one value, given or not: no part of it is inherited.
            return _walk(_other_than_none(shape), value, path, found, partial=False)
        case inspect.EnumType():
            return _member(shape.cls, value, path, found)
    message = _leaf(shape, value)
    if message is not None:
        found.add(path, message)
        return BAD
    return value


def _other_than_none(shape: inspect.UnionType) -> inspect.Type:
    return next(t for t in shape.types if not isinstance(t, inspect.NoneType))


def _struct(shape: inspect.StructType, value: object, path: str, found: Problems, partial: bool) -> Any:
    if not isinstance(value, Mapping):
        found.add(path, f"must be a mapping, not {_kind(value)}")
        return BAD
    given = _fields(shape, value, path, found, partial)
    if partial:
        return {name: item for name, item in given.items() if item is not BAD}
    missing = [f.encode_name for f in shape.fields if f.required and f.name not in given]
    for name in missing:
        found.add(join_path(path, name), "is missing")
    if missing or any(item is BAD for item in given.values()):
        return BAD
    try:
        return shape.cls(**given)
    except ValueError as broken:  # a rule of its own, between its fields
        found.add(path, str(broken))
        return BAD


def _fields(shape: inspect.Type, value: object, path: str, found: Problems, partial: bool) -> dict[str, Any]:
    """What a mapping gives of the fields of a Struct, BAD where it is wrong."""
    assert isinstance(shape, inspect.StructType)
    if not isinstance(value, Mapping):
        found.add(path, f"must be a mapping, not {_kind(value)}")
        return {}
    # A field of a type that no document can carry (a secret) is none of the document's fields.
    fields = {f.encode_name: f for f in shape.fields if not _undocumented(f.type)}
    given: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            found.add(path, f"keys must be text, not {_kind(key)}")
        elif (field := fields.get(key)) is None:
            _unknown(key, path, list(fields), found)
        else:
            given[field.name] = _walk(field.type, item, join_path(path, key), found, partial)
    return given


def _undocumented(shape: inspect.Type) -> bool:
    kinds = shape.types if isinstance(shape, inspect.UnionType) else (shape,)
    return any(isinstance(kind, inspect.CustomType) for kind in kinds)


def _unknown(key: str, path: str, known: Sequence[str], found: Problems) -> None:
    meant = found.suggest(key[:LONGEST_SHOWN], known)
    found.add(join_path(path, shorten(key)), "unknown key" + (f"; did you mean `{meant}`?" if meant else ""))


def _sequence(shape: inspect.VarTupleType, value: object, path: str, found: Problems) -> Any:
    """A list, with each entry given whole."""
    if not isinstance(value, list | tuple):
        found.add(path, f"must be a list, not {_kind(value)}")
        return BAD
    if shape.min_length is not None and len(value) < shape.min_length:
        found.add(path, "must not be empty")
        return BAD
    if shape.max_length is not None and len(value) > shape.max_length:
        found.add(path, f"must have at most {shape.max_length} entries, has {len(value)}")
        return BAD
    items = tuple(_walk(shape.item_type, item, f"{path}[{i}]", found, partial=False) for i, item in enumerate(value))
    return BAD if any(item is BAD for item in items) else items


def _leaf(shape: inspect.Type, value: object) -> str | None:
    """What is wrong with a single value, if anything. Text is not repeated: it might be a secret in a wrong place."""
    match shape:
        case inspect.BoolType():
            return None if isinstance(value, bool) else f"must be true or false, not {_kind(value)}"
        case inspect.IntType():
            if isinstance(value, bool) or not isinstance(value, int):
                return f"must be a whole number, not {_kind(value)}"
            return _bounds(shape, value)
        case inspect.FloatType():
            if isinstance(value, bool) or not isinstance(value, int | float):
                return f"must be a number, not {_kind(value)}"
            return _bounds(shape, value)
        case inspect.StrType():
            return _text(shape, value) if isinstance(value, str) else f"must be text, not {_kind(value)}"
        case inspect.LiteralType():
            return None if isinstance(value, str) and value in shape.values else _not_one_of(shape.values, value)
    raise TypeError(f"no document carries {shape}")


def _member(cls: type[Enum], value: object, path: str, found: Problems) -> Any:
    try:
        return cls(value)
    except ValueError:
        found.add(path, _not_one_of((member.value for member in cls), value))
        return BAD


def _not_one_of(words: Iterable[object], value: object) -> str:
    what = f"`{shorten(value)}`" if isinstance(value, str) else _kind(value)
    return f"must be one of {', '.join(map(str, words))}, not {what}"


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


def _kind(value: object) -> str:
    """What a value is, in the words of whoever wrote the document."""
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
