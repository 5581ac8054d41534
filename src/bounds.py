"""Types with bounds for the arguments of constructors and the fields of sections.

A bound is written once, here or at the argument: `n_stream: StreamCount`, `rank: Annotated[int, Field(ge=1)]`.
`src/settings` validates every configured value against these annotations with pydantic in strict mode; a
`Field(description=...)` ends the error message and states the way out. Called from Python, a constructor does not
check them. Any room may import this module.

    annotation                          accepts
    float                               a finite number; an integer becomes a float
    PositiveOrInf                       a positive number or .inf
    Annotated[float, Field(lt=1)]       a finite number below 1
"""

import math
from typing import Annotated

from pydantic import BeforeValidator, Field

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
#: Iterations or repetitions, at most 1000.
Count = Annotated[int, Field(ge=1, le=1000)]
#: Residual streams, at most 1024.
StreamCount = Annotated[int, Field(ge=1, le=1024)]


def _read_infinity(value: object) -> object:
    """Return infinity for its spellings on a command line (inf) and in YAML (.inf), any other value unchanged."""
    return math.inf if value in ("inf", ".inf") else value


#: Limit that .inf switches off.
PositiveOrInf = Annotated[float, Field(gt=0, allow_inf_nan=True), BeforeValidator(_read_infinity)]
