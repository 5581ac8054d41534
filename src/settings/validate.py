"""Values against types and ranges: what a configuration may give to a field.

A leaf: any room may import it. An integer where a float is wanted becomes one, and infinity may be written as a
command line has it (inf) or a file (.inf) where it means something; nothing else is converted.
"""

import math
from typing import Any, Union, get_args, get_origin

#: What float32 and int64 hold: beyond them a value fails far from where it was written.
MAX_FLOAT, MAX_INT = 3.4e38, 2**63 - 1
#: No path holds the first, and YAML reads the second (a line break, NEL) back as a space.
NO_TEXT = frozenset("\0\x85")
#: Keys at which `.inf` switches a limit off.
INFINITE = ("optimizer.grad_clip", "guard.above_uniform_nats", "guard.spike_nats")
#: What a name says about its range, whichever class has it: the ends, and whether the lower one is allowed.
RANGES: dict[str, tuple[float, float, bool]] = {
    "eps": (0, MAX_FLOAT, False),
    "std": (0, MAX_FLOAT, True),
    "lr_scale": (0, MAX_FLOAT, True),
    "n_stream": (1, 1024, True),
    "n_iteration": (1, 1000, True),
    "repeats": (0, 1000, True),
    "table_factor": (0, 1e6, False),
}


def typed(key: str, value: object, annotation: Any) -> Any:  # annotations are not values of one type
    """The value of `key` as its annotation wants it.

    Raises:
        ValueError: it is of another type, or out of the range of what can be computed with.
    """
    if get_origin(annotation) is dict and isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {name: typed(f"{key}.{name}", item, get_args(annotation)[1]) for name, item in value.items()}
    if key in INFINITE and value in ("inf", ".inf"):  # YAML has the one as text, Hydra's command line the other
        value = math.inf
    kinds = get_args(annotation) if get_origin(annotation) in (Union, type(int | str)) else (annotation,)
    for kind in kinds:
        fits, fitted = _fit(value, kind)
        if fits:
            refuse_extremes(key, fitted)
            return fitted
    if isinstance(value, int) and not -MAX_INT <= value <= MAX_INT:
        refuse_extremes(key, value)
    names = (str(k) if get_origin(k) else getattr(k, "__name__", str(k)) for k in kinds)
    wanted = " or ".join(names).replace("NoneType", "null")
    raise ValueError(f"{key} must be {wanted}, got {value!r} ({type(value).__name__})")


def _fit(value: object, kind: Any) -> tuple[bool, object]:  # see typed
    origin = get_origin(kind) or kind
    if origin is tuple and isinstance(value, list):
        wanted = get_args(kind)
        if len(value) != len(wanted):
            return False, None
        fits = [_fit(item, k) for item, k in zip(value, wanted, strict=True)]
        return all(ok for ok, _ in fits), tuple(item for _, item in fits)
    if origin is list and isinstance(value, list):
        fits = [_fit(item, k) for item in value for k in get_args(kind)]
        return all(ok for ok, _ in fits), [item for _, item in fits]
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return (True, float(value)) if -MAX_INT <= value <= MAX_INT else (False, None)
    if origin is int and isinstance(value, bool):
        return False, None
    if kind is Any or not isinstance(origin, type):
        return True, value
    return isinstance(value, origin), value


def refuse_extremes(key: str, value: object) -> None:
    """Look at a value and all that it holds.

    Raises:
        ValueError: a number that is none, or too large to compute with; text that no file can hold.
    """
    if isinstance(value, list | tuple):
        for item in value:
            refuse_extremes(key, item)
    elif isinstance(value, dict):
        for name, item in value.items():
            refuse_extremes(f"{key}.{name}", item)
    elif isinstance(value, float):
        _refuse_number(key, value)
    elif isinstance(value, int) and not -MAX_INT <= value <= MAX_INT:
        raise ValueError(f"{key} must fit in 64 bits, got an integer of {value.bit_length()} bits")
    elif isinstance(value, str) and (not NO_TEXT.isdisjoint(value) or not _encodes(value)):
        raise ValueError(f"{key} must be text of valid characters, got {value!r}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        _refuse_outside(key, value)


def _refuse_number(key: str, value: float) -> None:
    if value == math.inf and key in INFINITE:
        return
    if not math.isfinite(value):
        off = "or .inf, which switches it off, " if key in INFINITE else ""
        raise ValueError(f"{key} must be a finite number {off}and is {value}; give a number")
    if abs(value) > MAX_FLOAT:
        raise ValueError(f"{key} must lie within {MAX_FLOAT:g}, got {value:g}")


def _refuse_outside(key: str, value: float) -> None:
    name = key.rpartition(".")[2]
    for known, (low, high, closed) in RANGES.items():
        if name != known and not name.endswith(f"_{known}"):
            continue
        if not (low <= value <= high) or (value == low and not closed):
            bound = f"at least {low:g}" if closed else "positive" if low == 0 else f"above {low:g}"
            above = "" if high == MAX_FLOAT else f" and at most {high:g}"
            raise ValueError(f"{key} must be {bound}{above}, got {value:g}")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a command line that are no UTF-8
        return False
    return True
