"""Types with bounds accept and reject values in pydantic's strict mode."""

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from src import bounds


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
    found = TypeAdapter(kind).validate_python(value, strict=True)
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
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(value, strict=True)
