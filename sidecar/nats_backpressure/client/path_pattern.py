"""PathPattern: the path of a route, as Starlette writes it: what it matches, and which other paths it covers. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice, product
from typing import Any, NamedTuple
from uuid import UUID

CONVERTORS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "str": (r"[^/]+", str),
    "path": (r".*", str),
    "int": (r"[0-9]+", int),
    "float": (r"[0-9]+(?:\.[0-9]+)?", float),
    "uuid": (r"[0-9a-fA-F]{8}(?:-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}", UUID),
}
"""What `{name:convertor}` matches, and the type of its value: those of Starlette."""
_ANY = "\ue000"  # for private use: only a parameter matches it, and one that does matches any other text in its place
_ID = "b3b0c1de-0000-4000-8000-0123456789ab"
SAMPLES: dict[str, tuple[str, ...]] = {
    "str": (_ANY,),
    "path": (
        *("".join(each) for length in range(4) for each in product((_ANY, "/"), repeat=length)),
        f"{_ANY}/" * 12,
    ),
    "int": ("0", "7", "10", "1" * 20),
    "float": ("0", "7", "10", "7.5", "10.25"),
    "uuid": (_ID, _ID.upper(), _ID.replace("-", ""), _ID.replace("b", "4")),
}
"""Values of each convertor: what matches all of them matches every value."""
MOST_SAMPLES = 5000
"""Paths that are tried for one pattern; one that has more counts as not covered."""
_PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")


class PathPattern(NamedTuple):
    text: str
    regex: re.Pattern[str]
    convertors: dict[str, str]

    @classmethod
    def of(cls, text: str, kind: str = "route") -> PathPattern:
        """`kind` names it in errors. Raises ValueError for a path that could never match."""
        if not isinstance(text, str) or not text.startswith("/"):
            raise ValueError(f"{kind} {text!r}: a path begins with `/`")
        if problem := _problem(text):
            raise ValueError(f"{kind} {text!r}: {problem}")
        convertors = {match[1]: match[2] or "str" for match in _PARAMETER.finditer(text)}
        pieces, end = [], 0
        for match in _PARAMETER.finditer(text):
            pieces += [re.escape(text[end : match.start()]), f"(?P<{match[1]}>{CONVERTORS[convertors[match[1]]][0]})"]
            end = match.end()
        regex = re.compile("".join(pieces) + re.escape(text[end:]) + "$")  # `$` as Starlette has it
        return cls(text, regex, convertors)

    def match(self, path: str) -> dict[str, Any] | None:
        """The values in a path."""
        if (match := self.regex.match(path)) is None:
            return None
        return {name: _converted(self.convertors[name], value) for name, value in match.groupdict().items()}

    def covers(self, other: PathPattern) -> bool:
        """Whether it matches every path that the other one matches."""
        tried = 0
        for sample in islice(other._samples(), MOST_SAMPLES + 1):
            if self.regex.match(sample) is None:
                return False
            tried += 1
        return tried <= MOST_SAMPLES

    def _samples(self) -> Iterator[str]:
        literals = _PARAMETER.split(self.text)[::3]
        for values in product(*(SAMPLES[convertor] for convertor in self.convertors.values())):
            yield "".join(text for pair in zip(literals, (*values, ""), strict=True) for text in pair)


def _problem(text: str) -> str | None:
    """Why no request could match, or None."""
    parameters, literal = list(_PARAMETER.finditer(text)), _PARAMETER.sub("", text)
    if set(literal) & set("{}*?#"):
        return "{name} stands for one segment and {name:path} for the rest, nothing else"
    if not literal.isprintable() or literal != literal.strip():
        return "control characters, or blanks at an end"
    if re.search("%[0-9a-fA-F]{2}", literal):
        return "write it decoded: applications see no %20"
    if {".", ".."} & set(text.split("/")):
        return "callers resolve `.` and `..` before they send a path"
    if len({match[1] for match in parameters}) < len(parameters):
        return "each name once"
    if unknown := {match[2] or "str" for match in parameters} - set(CONVERTORS):
        return f"{', '.join(sorted(unknown))} is none of {', '.join(CONVERTORS)}"
    return None


def _converted(convertor: str, value: str) -> Any:
    try:
        return CONVERTORS[convertor][1](value)
    except ValueError:  # for example an integer with more digits than Python converts
        return value
