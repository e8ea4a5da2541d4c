"""NATS subject patterns and name globs: which covers which, which is more specific, how one is encoded as a tail."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Generic, TypeVar

LONGEST_SUBJECT = 1024
"""Bytes of an encoded subject; a longer one is not watched."""
LONGEST_GLOB = 255
"""Characters; the server allows stream and consumer names no longer than this."""
T = TypeVar("T")
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/.")
_ALL_PLAIN = re.compile(r"[A-Za-z0-9\-_/.]*")


def encode(subject: str) -> str:
    """A subject as the tail of one of our subjects, or a KV key: bytes of a token outside `A-Za-z0-9-_/` as `=XX`."""
    # Not cached: what a client invents must not fill our memory. Most subjects are their own tail.
    if _ALL_PLAIN.fullmatch(subject):
        return subject
    return "".join(chr(b) if b in _PLAIN else f"={b:02X}" for b in subject.encode())


def encoded_length(subject: str) -> int:
    """The length of `encode(subject)`, without making it: what a client sends may be long."""
    raw = subject.encode()
    return len(raw) + 2 * len(raw.translate(None, bytes(_PLAIN)))


class BadTail(ValueError):
    """A tail that is not the one canonical form of a subject; the text names the place."""


def decode(tail: str) -> str:
    """The subject that a tail encodes. Raises BadTail unless `encode` returns the very same tail."""
    if len(tail) > LONGEST_SUBJECT:
        raise BadTail(f"tail of {len(tail)} bytes is longer than {LONGEST_SUBJECT}")
    raw = bytearray()
    i = 0
    while i < len(tail):
        if tail[i] != "=":
            raw += tail[i].encode()
            i += 1
            continue
        pair = tail[i + 1 : i + 3]
        if len(pair) != 2 or any(c not in "0123456789ABCDEF" for c in pair):
            raise BadTail(f"`={pair}` at byte {i} is no `=XX` with two upper-case hex digits")
        raw.append(int(pair, 16))
        i += 3
    try:
        subject = raw.decode()
    except UnicodeDecodeError:
        raise BadTail("tail does not decode to UTF-8") from None
    if "" in subject.split("."):
        raise BadTail("tail has an empty token")
    if (canonical := encode(subject)) != tail:
        raise BadTail(f"not the canonical form; it is `{canonical[:120]}`")
    return subject


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that `subject` (literal or pattern) can match is matched by `pattern` too."""
    theirs = subject.split(".")
    for i, token in enumerate(tokens := pattern.split(".")):
        if token == ">":
            return len(theirs) > i
        if i >= len(theirs) or theirs[i] == ">" or (token != "*" and token != theirs[i]):
            return False
    return len(tokens) == len(theirs)


class PatternIndex(Generic[T]):
    """Values by subject pattern. The cost of a look-up depends on the length of the subject, not on the number of
    patterns."""

    __slots__ = ("_literal", "_root")

    def __init__(self, items: Iterable[tuple[str, T]] = ()) -> None:
        self._literal: dict[str, list[T]] = {}
        self._root: _Node[T] = _Node()
        for pattern, value in items:
            self.add(pattern, value)

    def add(self, pattern: str, value: T) -> None:
        self._values(pattern).append(value)

    def remove(self, pattern: str, value: T) -> None:
        """Take out a value that was added under this pattern, and what nothing else needs. Raises ValueError if there
        is none."""
        self._values(pattern).remove(value)
        if pattern in self._literal:
            if not self._literal[pattern]:
                del self._literal[pattern]
            return
        way = [self._root]
        for token in (tokens := pattern.split(".")):
            way.append(way[-1].next[token])
        for node, parent, token in zip(way[:0:-1], way[-2::-1], reversed(tokens), strict=True):
            if node.values or node.next:
                return
            del parent.next[token]

    def covering(self, subject: str) -> Iterator[T]:
        """The values of every pattern that covers the subject (literal or pattern), the most specific pattern first:
        at each token the token itself, then `*`, then `>`."""
        yield from self._literal.get(subject, ())
        tokens = subject.split(".")
        end = len(tokens)
        stack = [(self._root, 0)]
        while stack:
            node, i = stack.pop()
            if i == end:
                yield from node.values
                continue
            # The last one is popped first. `>` is covered by `>` alone.
            names = (">",) if tokens[i] == ">" else (">", "*") if tokens[i] == "*" else (">", "*", tokens[i])
            stack.extend((node.next[name], end if name == ">" else i + 1) for name in names if name in node.next)

    def _values(self, pattern: str) -> list[T]:
        tokens = pattern.split(".")
        if "*" not in tokens and tokens[-1] != ">":
            return self._literal.setdefault(pattern, [])
        node = self._root
        for token in tokens:
            node = node.next.setdefault(token, _Node())
        return node.values


class _Node(Generic[T]):
    """The values of one pattern, and the nodes of the patterns that continue it, by their next token."""

    __slots__ = ("next", "values")

    def __init__(self) -> None:
        self.next: dict[str, _Node[T]] = {}
        self.values: list[T] = []


@lru_cache(maxsize=4096)
def covers_all(filters: tuple[str, ...], subjects: tuple[str, ...]) -> bool:
    """Whether a consumer with these filters takes every message of a stream with these subjects."""
    return bool(subjects) and all(any(covers(own, subject) for own in filters) for subject in subjects)


def overlap(one: str, other: str) -> bool:
    """Whether some subject is matched by both patterns."""
    a, b = one.split("."), other.split(".")
    for x, y in zip(a, b, strict=False):
        if ">" in (x, y):
            return True
        if x != y and "*" not in (x, y):
            return False
    return len(a) == len(b)


def specificity(pattern: str) -> tuple[int, ...]:
    """A sort key, smaller is more specific: token by token, a literal before `*` before `>`."""
    return tuple({"*": 1, ">": 2}.get(token, 0) for token in pattern.split("."))


def glob(pattern: str, name: str) -> bool:
    """Whether `name` matches `pattern`, in which `*` matches any run of characters."""
    # On a mismatch only the last star is tried again, so that no pattern costs more than the product of the lengths.
    p = n = 0
    star, mark = -1, 0
    while n < len(name):
        if p < len(pattern) and pattern[p] == "*":
            star, mark, p = p, n, p + 1
        elif p < len(pattern) and pattern[p] == name[n]:
            p, n = p + 1, n + 1
        elif star >= 0:
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return all(c == "*" for c in pattern[p:])


def globs_meet(one: str, other: str) -> bool:
    """Whether some name matches both globs."""
    row = [False] * (len(other) + 2)
    for i in range(len(one), -1, -1):
        below, row = row, [False] * (len(other) + 2)
        a = one[i] if i < len(one) else ""
        for j in range(len(other), -1, -1):
            b = other[j] if j < len(other) else ""
            if a == b == "":
                row[j] = True
            elif a == "*" or b == "*":
                # A star matches nothing, or takes the next character of the other.
                row[j] = (a != "" and below[j]) if not b else row[j + 1] if not a else below[j] or row[j + 1]
            else:
                row[j] = a == b and below[j + 1]
    return row[0]


def pattern_problem(pattern: str) -> str | None:
    """Why this is no subject or subject pattern that could be watched, or None."""
    if not pattern:
        return "must not be empty"
    if any(c.isspace() or not c.isprintable() for c in pattern):
        return "must not hold blanks or control characters"
    if len(pattern) > LONGEST_SUBJECT or encoded_length(pattern) > LONGEST_SUBJECT:
        return f"must have at most {LONGEST_SUBJECT} bytes when encoded"
    parts = pattern.split(".")
    if "" in parts:
        return "must not have an empty token (a dot at an end, or two in a row)"
    if ">" in parts[:-1]:
        return "may have `>` as its last token only"
    if any(len(part) > 1 and ("*" in part or ">" in part) for part in parts):
        return "may have `*` and `>` only as whole tokens"
    return None


def literal_problem(subject: str) -> str | None:
    """Why this is no plain subject, or None."""
    if any(token in ("*", ">") for token in subject.split(".")):
        return "must be a plain subject, without `*` and `>`"
    return pattern_problem(subject)


def glob_problem(text: str) -> str | None:
    """Why no stream or consumer could be named like this, or None."""
    if not text:
        return "must not be empty"
    if len(text) > LONGEST_GLOB:
        return f"must have at most {LONGEST_GLOB} characters"
    if any(c.isspace() or not c.isprintable() or c in ".>/\\" for c in text):
        return "must not hold blanks, dots, slashes or `>`: it is compared with names of streams and consumers"
    if any(c in "?[]" for c in text):
        return "knows only `*` as a wildcard, not `?` or `[...]`"
    return None
