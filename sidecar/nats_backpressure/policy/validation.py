"""Validates untrusted YAML or JSON values and converts them to frozen Structs; every problem is reported with its path.

msgspec itself stops at the first problem; anyone who edits a file wants them all. The walk follows the types, never the
value, so a hostile document can neither nest deeper than the types do nor be walked where nothing is expected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

from msgspec import Struct, inspect

from nats_backpressure.policy.value_checks import kind_of, value_problem

T = TypeVar("T", bound=Struct)
Suggest = Callable[[str, Sequence[str]], str | None]

LIMIT: Final = 50
"""Problems that are listed; the others are only counted."""
LONGEST_SHOWN: Final = 60
"""Characters of a text from the document that a message repeats."""
BAD: Final = object()
DRY_RUN: Final = "observe"
"""What an unknown word counts as in a closed list that has this one: taken for not given, it would leave `enforce`, and
a dry run of a newer version would refuse callers. In every other list the word that is inherited counts."""


class FieldProblem(Struct, frozen=True):
    """One problem: where it is (`policies[0].pending.warn`, empty for the whole document), and which rule is broken."""

    path: str
    message: str

    @property
    def line(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class Problems:
    """Problems in the order in which they were problems: the first LIMIT in full, the others counted.

    `suggest` returns the known key that an unknown one was probably meant to be, or None. With `newer_allowed` another
    version may have written the document: a key, or a word of a closed list, that this one does not know is no problem.
    It is left out, and listed in `ignored`.
    """

    def __init__(self, suggest: Suggest = lambda key, known: None, newer_allowed: bool = False) -> None:
        self.suggest = suggest
        self._newer_allowed = newer_allowed
        self._first: list[FieldProblem] = []
        self._count = 0
        self.ignored: list[FieldProblem] = []
        """The first LIMIT."""

    def __len__(self) -> int:
        return self._count

    def add(self, path: str, message: str) -> None:
        self._count += 1
        if self._count <= LIMIT:
            self._first.append(FieldProblem(path, message))

    def add_unknown(self, path: str, message: str) -> None:
        """Something that a newer version may know."""
        if not self._newer_allowed:
            self.add(path, message)
        elif len(self.ignored) < LIMIT:
            self.ignored.append(FieldProblem(path, message))

    def has_path(self, path: str) -> bool:
        """Whether there is a problem at exactly this path."""
        return any(problem.path == path for problem in self._first)

    def listed(self) -> tuple[FieldProblem, ...]:
        """The first LIMIT problems, and one more that counts the others."""
        more = self._count - LIMIT
        return (*self._first, FieldProblem("", f"and {more} more problems")) if more > 0 else tuple(self._first)


def read_struct(cls: type[T], value: object, path: str, problems: Problems) -> T | None:
    """`value` as a `cls`, or None after adding every problem with it."""
    before = len(problems)
    given = _walk(_shape(cls), value, path, problems, partial=False)
    return cast(T, given) if len(problems) == before else None


def read_with_defaults(cls: type[T], value: object, path: str, problems: Problems) -> T:
    """Like `read_struct`, with the default for each field that is wrong or missing, so that the rest can be checked."""
    given = _fields(_shape(cls), value, path, problems, partial=False)
    return cls(**{name: item for name, item in given.items() if item is not BAD})


def read_partial(cls: type[Struct], value: object, path: str, problems: Problems) -> dict[str, Any]:
    """Only the fields of `cls` that `value` sets, nested Structs as dicts: nothing is required, no default is added."""
    given = _walk(_shape(cls), value, path, problems, partial=True)
    return {} if given is BAD else given


def join_path(path: str, key: str) -> str:
    """The path of `key` in the mapping at `path`."""
    return f"{path}.{key}" if path else key


def shorten(text: str, longest: int = LONGEST_SHOWN) -> str:
    """A text from outside as one printable line, cut to `longest` characters."""
    # `ascii` leaves no control sequence for a terminal or a log.
    text = ascii(text[: longest + 1])[1:-1]
    return text if len(text) <= longest else text[:longest] + "..."


@lru_cache(maxsize=64)
def _shape(cls: type[Struct]) -> inspect.Type:
    return inspect.type_info(cls)


def _walk(shape: inspect.Type, value: object, path: str, problems: Problems, partial: bool) -> Any:
    match shape:
        case inspect.StructType():
            return _struct(shape, value, path, problems, partial)
        case inspect.VarTupleType():
            return _sequence(shape, value, path, problems)
        case inspect.UnionType():
            if value is None and shape.includes_none:
                return None
            # A nullable field is set as a whole or not at all: no part of it is inherited.
            return _walk(_other_than_none(shape), value, path, problems, partial=False)
        case inspect.EnumType():
            return _member(shape.cls, value, path, problems)
        case inspect.LiteralType():
            return _word(shape, value, path, problems)
    if (message := value_problem(shape, value)) is not None:
        problems.add(path, message)
        return BAD
    return value


def _other_than_none(shape: inspect.UnionType) -> inspect.Type:
    return next(t for t in shape.types if not isinstance(t, inspect.NoneType))


def _struct(shape: inspect.StructType, value: object, path: str, problems: Problems, partial: bool) -> Any:
    if not isinstance(value, Mapping):
        problems.add(path, f"must be a mapping, not {kind_of(value)}")
        return BAD
    ignored = len(problems.ignored)
    given = _fields(shape, value, path, problems, partial)
    if partial:
        return {name: item for name, item in given.items() if item is not BAD}
    missing = [f.encode_name for f in shape.fields if f.required and f.name not in given]
    for name in missing:
        problems.add(join_path(path, name), "is missing")
    if missing or any(item is BAD for item in given.values()):
        return BAD
    try:
        return shape.cls(**given)
    except ValueError as broken:  # a rule between its fields, in __post_init__
        if len(problems.ignored) == ignored:  # otherwise it lacks what was left out, which is listed
            problems.add(path, str(broken))
        return BAD


def _fields(shape: inspect.Type, value: object, path: str, problems: Problems, partial: bool) -> dict[str, Any]:
    """The fields of a Struct that a mapping sets, BAD where the value is wrong."""
    assert isinstance(shape, inspect.StructType)
    if not isinstance(value, Mapping):
        problems.add(path, f"must be a mapping, not {kind_of(value)}")
        return {}
    # A field whose type no document can have (a secret) is not a field of the document.
    fields = {f.encode_name: f for f in shape.fields if not _undocumented(f.type)}
    given: dict[str, Any] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            problems.add(path, f"keys must be text, not {kind_of(key)}")
        elif (field := fields.get(key)) is None:
            _unknown(key, path, list(fields), problems)
        else:
            given[field.name] = _walk(field.type, item, join_path(path, key), problems, partial)
    return given


def _undocumented(shape: inspect.Type) -> bool:
    kinds = shape.types if isinstance(shape, inspect.UnionType) else (shape,)
    return any(isinstance(kind, inspect.CustomType) for kind in kinds)


def _unknown(key: str, path: str, known: Sequence[str], problems: Problems) -> None:
    meant = problems.suggest(key[:LONGEST_SHOWN], known)
    problems.add_unknown(join_path(path, shorten(key)), "unknown key" + (f"; did you mean `{meant}`?" if meant else ""))


def _sequence(shape: inspect.VarTupleType, value: object, path: str, problems: Problems) -> Any:
    """A list; each entry must be complete. One that only a newer version can read is left out."""
    if not isinstance(value, list | tuple):
        problems.add(path, f"must be a list, not {kind_of(value)}")
        return BAD
    if shape.min_length is not None and len(value) < shape.min_length:
        problems.add(path, "must not be empty")
        return BAD
    if shape.max_length is not None and len(value) > shape.max_length:
        problems.add(path, f"must have at most {shape.max_length} entries, has {len(value)}")
        return BAD
    before = len(problems)
    items = tuple(_walk(shape.item_type, item, f"{path}[{i}]", problems, partial=False) for i, item in enumerate(value))
    known = tuple(item for item in items if item is not BAD)
    # Without any that is known the list is left out: an empty one would switch off what is inherited.
    return BAD if len(problems) > before or (items and not known) else known


def _member(cls: type[Enum], value: object, path: str, problems: Problems) -> Any:
    try:
        return cls(value)
    except ValueError:
        add = problems.add_unknown if isinstance(value, str) else problems.add
        add(path, _not_one_of((member.value for member in cls), value))
        return BAD


def _word(shape: inspect.LiteralType, value: object, path: str, problems: Problems) -> Any:
    """A word of a closed list."""
    if not isinstance(value, str):
        problems.add(path, _not_one_of(shape.values, value))
        return BAD
    if value in shape.values:
        return value
    message = _not_one_of(shape.values, value)
    if DRY_RUN in shape.values:
        problems.add_unknown(path, f"{message}, which counts as {DRY_RUN}")
        return DRY_RUN
    problems.add_unknown(path, message)
    return BAD


def _not_one_of(words: Iterable[object], value: object) -> str:
    what = f"`{shorten(value)}`" if isinstance(value, str) else kind_of(value)
    return f"must be one of {', '.join(map(str, words))}, not {what}"
