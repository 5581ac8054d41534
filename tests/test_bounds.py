"""Types with bounds accept and reject values in pydantic's strict mode."""

import math
import re
from typing import Any, Literal

import pytest

from src import bounds
from src.bounds import validate


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (bounds.PositiveInt, 1, 1),
        (bounds.NonNegativeInt, 0, 0),
        (bounds.PositiveFloat, 2, 2.0),
        (bounds.NonNegativeFloat, 0, 0.0),
        (bounds.StreamCount, 1024, 1024),
        (bounds.PositiveOrInf, ".inf", math.inf),
        (bounds.PositiveOrInf, "inf", math.inf),
        (bounds.PositiveOrInf, 1, 1.0),
    ],
)
def test_a_value_within_the_bounds_is_accepted(kind: Any, value: object, expected: float) -> None:
    found = validate("a.b", value, kind)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (bounds.PositiveInt, 0),
        (bounds.PositiveInt, True),
        (bounds.NonNegativeInt, -1),
        (bounds.PositiveFloat, 0.0),
        (bounds.Count, 1001),
        (bounds.StreamCount, 1025),
        (bounds.PositiveOrInf, math.nan),
        (bounds.PositiveOrInf, 0),
        (bounds.PositiveOrInf, "1"),
    ],
)
def test_a_value_outside_the_bounds_is_rejected(kind: Any, value: object) -> None:
    with pytest.raises(ValueError, match=r"^a\.b must "):
        validate("a.b", value, kind)


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        (int, "four", "a.b must be int, got 'four'"),
        (float, "fast", "a.b must be float, got 'fast'"),
        (float, math.inf, "a.b must be float, got inf"),
        (list[int], [1, "two"], "a.b must be list[int], got [1, 'two']"),
        (tuple[float, float], [0.9], "a.b must be tuple[float, float], got [0.9]"),
        (str | None, 3, "a.b must be str or null, got 3"),
        (bool | Literal["auto"], "maybe", "a.b must be true, false or auto, got 'maybe'"),
        (bounds.PositiveInt | Literal["auto"], 0, "a.b must be int >= 1 or auto, got 0"),
        (bounds.PositiveOrInf, 0, "a.b must be float > 0 or .inf, got 0"),
        (bounds.StreamCount, 1, "a.b must be int >= 2 and <= 1024, got 1; use residual=vanilla for one stream"),
        (dict[str, dict[str, Any]], {"c": 3}, "a.b.c must be dict[str, Any], got 3"),
        (float, 10**400, "a.b must fit in 64 bits, got an integer of 1329 bits"),
        (dict[str, Any], {"c": [math.inf]}, "a.b.c must be a finite number within 3.4e+38, got inf"),
    ],
)
def test_the_message_has_key_bound_value_and_hint(kind: Any, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        validate("a.b", value, kind)


def test_a_list_becomes_a_tuple_and_integers_become_floats() -> None:
    assert validate("a", [0, 0.95], tuple[float, float]) == (0.0, 0.95)
