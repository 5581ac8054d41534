"""Types with bounds for the arguments of constructors and the fields of sections, and validation against them.

A bound is written once, at the argument or here: `n_stream: StreamCount`, `rank: Annotated[int, Field(ge=1)]`. A
`Field(description=...)` ends the error message and states the way out. `src/settings` validates every configured
value against these annotations with pydantic in strict mode; a constructor that is called from Python does not check
them. Any room may import this module.

    annotation                          accepts
    float                               a finite number; an integer becomes a float
    PositiveOrInf                       a positive number, or .inf, which switches a limit off
    Annotated[float, Field(lt=1)]       a finite number below 1
"""

import math
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
#: Iterations or repetitions.
Count = Annotated[int, Field(ge=1, le=1000)]
#: One value for all blocks, or a pair [first, last].
ByDepth = float | Annotated[tuple[float, float], Strict(False)]
#: Residual streams.
StreamCount = Annotated[int, Field(ge=2, le=1024, description="use residual=vanilla for one stream")]


def _read_infinity(value: object) -> object:
    """Return infinity for its spellings on a command line (inf) and in YAML (.inf), any other value unchanged."""
    return math.inf if value in ("inf", ".inf") else value


PositiveOrInf = Annotated[float, Field(gt=0, allow_inf_nan=True), BeforeValidator(_read_infinity)]

#: Largest magnitudes of float32 and int64: beyond them a value fails far from where it is configured.
MAX_FLOAT, MAX_INT = 3.4e38, 2**63 - 1
#: No path contains NUL, and YAML reads NEL (a line break) back as a space.
FORBIDDEN_CHARACTERS = frozenset("\0\x85")
CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def validate(key: str, value: object, annotation: Any) -> Any:  # a value of the annotated type
    """Return `value` as the annotation wants it: integers become floats and lists tuples, nothing else is converted.

    Args:
        key: dotted key for the error message.
        value: plain value of a configuration.
        annotation: type of an argument, with or without bounds.

    Raises:
        ValueError: the value has another type or lies outside its bounds, or nothing can represent it.
    """
    check_representable(key, value)
    if get_origin(annotation) is tuple:
        annotation = Annotated[annotation, Strict(False)]  # only the tuple: a configuration has lists
    try:
        return TypeAdapter(annotation, config=CONFIG).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        if get_origin(annotation) is dict and len(first["loc"]) == 1:  # name the item, not the whole mapping
            key, value, annotation = f"{key}.{first['loc'][0]}", first["input"], get_args(annotation)[1]
        hint = _read_hint(annotation)
        raise ValueError(f"{key} must be {describe(annotation)}, got {value!r}{hint}") from None


def describe(annotation: Any) -> str:  # any annotation
    """Return an annotation in words: "int >= 1", "auto, true or false"."""
    *others, last = _alternatives(annotation)
    return f"{', '.join(others)} or {last}" if others else last


def _alternatives(annotation: Any) -> list[str]:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return list(dict.fromkeys(word for kind in arguments for word in _alternatives(kind)))
    if origin is Annotated:
        kind, *metadata = arguments
        bounds = [bound for item in metadata for bound in getattr(item, "metadata", [item])]
        signs = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))
        ends = [f"{sign} {getattr(b, name):g}" for b in bounds for name, sign in signs if hasattr(b, name)]
        words = [f"{word} {' and '.join(ends)}".rstrip() for word in _alternatives(kind)]
        return [*words, ".inf"] if any(getattr(b, "allow_inf_nan", False) for b in bounds) else words
    if origin is Literal:
        return ["true" if v is True else "false" if v is False else str(v) for v in arguments]
    if annotation is bool:
        return ["true", "false"]
    if annotation is NoneType:
        return ["null"]
    if arguments:
        return [f"{origin.__name__}[{', '.join(map(describe, arguments))}]"]
    return [getattr(annotation, "__name__", str(annotation))]


def _read_hint(annotation: Any) -> str:
    for item in (annotation, *get_args(annotation)):
        for part in get_args(item) if get_origin(item) is Annotated else ():
            if isinstance(part, FieldInfo) and part.description:
                return f"; {part.description}"
    return ""


def check_representable(key: str, value: object, is_item: bool = False) -> None:
    """Check a value and its items, whatever their types; only a value that is not an item may be infinite.

    Raises:
        ValueError: a number that is NaN or too large to compute with, or text that no file can hold.
    """
    if isinstance(value, list | tuple):
        for item in value:
            check_representable(key, item, is_item=True)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_representable(f"{key}.{name}", item, is_item=True)
    elif isinstance(value, float) and not abs(value) <= MAX_FLOAT and (value != math.inf or is_item):
        raise ValueError(f"{key} must be a finite number within {MAX_FLOAT:g}, got {value:g}")
    elif isinstance(value, int) and not -MAX_INT <= value <= MAX_INT:
        raise ValueError(f"{key} must fit in 64 bits, got an integer of {value.bit_length()} bits")
    elif isinstance(value, str) and (not FORBIDDEN_CHARACTERS.isdisjoint(value) or not _encodes(value)):
        raise ValueError(f"{key} must be text of valid characters, got {value!r}")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a command line that are not UTF-8
        return False
    return True
