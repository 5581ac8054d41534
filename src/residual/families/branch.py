"""Base classes of branch strategies: they change what enters and leaves the sublayers, not the stream between them.

    x0 -> start(x0)      u -> enter(u)      y -> leave(y)      q, k, v -> tap(q, k, v)

Alone, a branch strategy acts on vanilla's stream, x <- x + leave(F(N(enter(x)))). `composed.py` puts several of them
on the stream of another strategy.
"""

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from src.residual.base import QKV, ResidualStrategy, Site

#: Tensors that a branch strategy keeps between its taps.
Memory = tuple[Tensor, ...]


class BranchState(NamedTuple):
    """Stream, and the memory of the taps."""

    x_BTD: Tensor
    memory: Memory


class BranchStrategy(ResidualStrategy[BranchState]):
    """Strategy that subclasses define by `start`, `enter`, `leave` and `tap`; each changes nothing by default."""

    may_skip: ClassVar[bool] = True
    #: What only one part of a composition may change, in words; empty: the changes of several parts add up.
    replaces: ClassVar[str] = ""

    def start(self, x0_BTD: Tensor) -> Tensor:
        """Return the initial stream [B, T, D]; if `spec.n_stream` > 1, all streams [B, T, N, D]."""
        return x0_BTD

    def enter(self, u_BTD: Tensor, site: Site) -> Tensor:
        """Return the input [B, T, D] of `site` for what the stream gives it; of `QKV`, each view enters by itself."""
        return u_BTD

    def leave(self, y_BTD: Tensor, site: Site) -> Tensor:
        """Return what the stream gets [B, T, D] for the output of `site`."""
        return y_BTD

    def note(self, memory: Memory, site: Site, x: Tensor | QKV) -> Memory:
        """Return the memory after the normed input of attention is known (`note_input`); before `tap`."""
        return memory

    def tap(
        self, memory: Memory, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Memory]:
        """Replace queries, keys and values as `tap_qkv` does; needs `taps_qkv`. The memory starts empty."""
        raise NotImplementedError

    # ---- alone, on vanilla's stream

    def begin(self, x0_BTD: Tensor) -> BranchState:
        return BranchState(self.start(x0_BTD), ())

    def inject(self, state: BranchState, site: Site, e_BTD: Tensor) -> tuple[BranchState, None]:
        return state._replace(x_BTD=state.x_BTD + e_BTD), None

    def get_stream(self, state: BranchState) -> Tensor:
        return state.x_BTD

    def replace_stream(self, state: BranchState, x_BTD: Tensor) -> BranchState:
        return state._replace(x_BTD=x_BTD)

    def read(self, state: BranchState, site: Site) -> tuple[Tensor, BranchState]:
        return self.enter(state.x_BTD, site), state

    def note_input(self, state: BranchState, site: Site, x: Tensor | QKV) -> BranchState:
        return state._replace(memory=self.note(state.memory, site, x))

    def tap_qkv(
        self, state: BranchState, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, BranchState]:
        q_BHTK, k_BHTK, v_BHTK, memory = self.tap(state.memory, site, q_BHTK, k_BHTK, v_BHTK)
        return q_BHTK, k_BHTK, v_BHTK, state._replace(memory=memory)

    def write(self, state: BranchState, site: Site, y_BTD: Tensor) -> BranchState:
        return state._replace(x_BTD=state.x_BTD + self.leave(y_BTD, site))

    def end(self, state: BranchState) -> Tensor:
        return state.x_BTD


class WeightedBranches(BranchStrategy):
    """Branch strategy whose outputs are multiplied by a weight of the site: x <- x + weight * y."""

    @abstractmethod
    def weight(self, site: Site) -> Tensor:
        """Return the weight of the output of `site`, 0-dim or [D]."""

    def leave(self, y_BTD: Tensor, site: Site) -> Tensor:
        weight = self.weight(site)
        return y_BTD.to(weight.dtype) * weight

    def write(self, state: BranchState, site: Site, y_BTD: Tensor) -> BranchState:
        return state._replace(x_BTD=torch.addcmul(state.x_BTD, self.weight(site), y_BTD))
