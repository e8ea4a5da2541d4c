"""Decodes messages of the sidecar, also those of a newer version, which may hold values that this one does not know."""

from __future__ import annotations

from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct, inspect

NEUTRAL: Final = ("unknown", "hold", "continue", "normal", "enforce", "constant")
"""What an unknown value is read as: the one of these that the field may have, else null if it may be that."""

S = TypeVar("S", bound=Struct)


def decode_message(document: bytes, kind: type[S]) -> S:
    """A message as `kind`. Unknown fields are ignored. Raises msgspec.MsgspecError or UnicodeDecodeError."""
    try:
        return msgspec.json.decode(document, type=kind)
    except msgspec.ValidationError:
        return msgspec.convert(_known(msgspec.json.decode(document), _type_of(kind)), kind)


def read_message(document: bytes, kind: type[S]) -> S | None:
    """The same, None for what is not such a message."""
    try:
        return decode_message(document, kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


@cache
def _type_of(kind: type[Struct]) -> inspect.Type:
    return inspect.type_info(kind)


def _known(value: Any, kind: inspect.Type) -> Any:
    """The value, with each unknown value of a closed list replaced, or left out of a mapping where nothing can replace
    it."""
    match kind:
        case inspect.Metadata(type=inner):
            return _known(value, inner)
        case inspect.StructType(fields=fields) if isinstance(value, dict):
            known = {f.encode_name: _known(value[f.encode_name], f.type) for f in fields if f.encode_name in value}
            return value | known
        case inspect.VarTupleType(item_type=item) if isinstance(value, list):
            return [_known(one, item) for one in value]
        case inspect.DictType(value_type=item) if isinstance(value, dict):
            read = {key: _known(one, item) for key, one in value.items()}
            words = item.values if isinstance(item, inspect.LiteralType) else None
            return {key: one for key, one in read.items() if words is None or not isinstance(one, str) or one in words}
        case inspect.LiteralType(values=values) if isinstance(value, str) and value not in values:
            return next((neutral for neutral in NEUTRAL if neutral in values), value)
        case inspect.UnionType(types=types) if value is not None:
            some = [each for each in types if not isinstance(each, inspect.NoneType)]
            if len(some) != 1:
                return value
            if len(types) == 2 and isinstance(some[0], inspect.LiteralType):
                return value if value in some[0].values else None
            return _known(value, some[0])
        case inspect.RawType():
            return Raw(msgspec.json.encode(value))
    return value
