"""What the strategies with a single stream share: sublayers read it, and it is what the trunk is left with.

read: x       end: x       write: the strategy's own
"""

from typing import ClassVar

from torch import Tensor

from src.residual.base import ResidualStrategy, Site


class OneStream(ResidualStrategy[Tensor]):
    """The state is the stream [B, T, D]; subclasses say how an output enters it."""

    may_skip: ClassVar[bool] = True

    def begin(self, x0_BTD: Tensor) -> Tensor:
        return x0_BTD

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state, state

    def end(self, state: Tensor) -> Tensor:
        return state
