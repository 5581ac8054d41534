"""Base class of value residuals: the values of the first attention enter those of later ones.

v_l <- mix(v_l, v_1, h_l)    in every visit to an attention except the first; h_l: the normed input of attention
"""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from src.residual.base import QKV, Site, StreamSpec
from src.residual.families.branch import BranchStrategy, Memory


class ValueResidual(BranchStrategy):
    """Branch strategy that remembers the first values; subclasses mix them into later ones.

    Args:
        spec: the trunk, with at least two visits to an attention.
        name: option of the subclass, for the error message.
    """

    taps_qkv: ClassVar[bool] = True
    replaces: ClassVar[str] = "the values of attention"

    def __init__(self, spec: StreamSpec, name: str) -> None:
        super().__init__()
        later = [site.index for site in spec.sites if site.kind == "attn"][1:]
        if not later:
            raise ValueError(f"residual={name} needs model.n_layer >= 2, got {spec.n_layer}")
        #: Row of each visit after the first, by the index of its site.
        self.rows = {index: row for row, index in enumerate(later)}

    @abstractmethod
    def mix(self, v_BHTK: Tensor, first_BHTK: Tensor, h_BTD: Tensor, row: int) -> Tensor:
        """Return the values of attention at a visit after the first."""

    def note(self, memory: Memory, site: Site, x: Tensor | QKV) -> Memory:
        return *memory, x.v_BTD if isinstance(x, QKV) else x

    def tap(
        self, memory: Memory, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        *first, h_BTD = memory
        if not first:
            return q_BHTK, k_BHTK, v_BHTK, (v_BHTK,)
        return q_BHTK, k_BHTK, self.mix(v_BHTK, first[0], h_BTD, self.rows[site.index]), (first[0],)
