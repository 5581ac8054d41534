"""Base class of strategies with a single stream: sublayers read the stream, and the trunk ends with it.

read: x       end: x       write: defined by the strategy
"""

from typing import ClassVar

from torch import Tensor

from src.residual.base import ResidualStrategy, Site


class SingleStream(ResidualStrategy[Tensor]):
    """Strategy whose state is the stream [B, T, D]; subclasses define `write`."""

    may_skip: ClassVar[bool] = True

    def begin(self, x0_BTD: Tensor) -> Tensor:
        return x0_BTD

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state, state

    def end(self, state: Tensor) -> Tensor:
        return state
