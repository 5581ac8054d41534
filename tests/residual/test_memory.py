"""Bytes that a strategy saves for its backward, counted at 24 layers.

A strategy runs alone, over sublayers `x / 2` that save their input, as the norm of every sublayer does. Every storage
that an operation allocates (x0 included) is tracked; those still alive when only the output is held are saved by the
graph, through autograd's saved tensors or by a checkpoint for recomputation. Each storage counts once with its whole
size, except the output, the parameters, and one hidden state per site (the inputs of sublayers). The unit is one hidden
state, B * T * D floats, so that vanilla saves 0.
"""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from src.norm.base import NormSpec
from src.norm.layernorm import LayerNorm
from src.residual.base import QKV, StreamSpec, build_plain_sites
from tests.residual.plain import flow
from tests.support import component

N_LAYER, B, T, D = 24, 2, 16, 1024
STATE = B * T * D

#: Largest number of saved hidden states: one per stream or output that enters a learned product.
BARS = {
    "vanilla": 0,
    "learned_scaling": 26,
    "x0_blend": 26,
    "attnres": 70,
    "attnres_block": 55,
    "attnres_multihead": 70,
    "attnres_window": 60,
    "lr_attnres": 80,
    "lr_attnres_dynamic_query": 80,
    "attnres_stream_block": 10,
    "tdar": 60,
    "hyperconn": 250,
    "denseformer": 26,
    "mhc": 300,
    "ihc": 300,
    "frac_connections": 160,
    "delta_attnres": 100,
    "delta_attnres_block": 50,
    "delta_attnres_gated": 100,
    "muddformer": 100,  # of an attention's three views each has a norm that keeps it
    "muddformer_prepost": 245,  # 68 of them are W1 times the gain, of the size of a parameter
}


class Storages(TorchDispatchMode):
    """Watches all storages made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self.n_bytes[StorageWeakRef(storage)] = storage.nbytes()
        return out

    def kept(self, but: Iterable[Tensor]) -> float:
        """Hidden states alive, other than in `but`."""
        others = {StorageWeakRef(tensor.untyped_storage()) for tensor in but}
        alive = [n for ref, n in self.n_bytes.items() if ref not in others and not ref.expired()]
        return sum(alive) / (4 * STATE)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x / 2

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy / 2


def halved(x: Tensor | QKV) -> Tensor:
    if isinstance(x, Tensor):
        return Halved.apply(x)
    return sum(Halved.apply(view) for view in x) / 3


def hidden_states_kept(name: str) -> float:
    def make_norm(width: int) -> LayerNorm:
        return LayerNorm(NormSpec(width, False), eps=1e-5)

    spec = StreamSpec(N_LAYER, 16, D, build_plain_sites(N_LAYER), make_norm)
    strategy = component("residual", name)(spec)
    leaf = torch.randn(B, T, D, requires_grad=True)
    with Storages() as made:
        out = flow(strategy, spec, leaf * 1.0, [halved] * spec.n_site)
    return made.kept(but=[out, *strategy.parameters(), *strategy.buffers()]) - spec.n_site


@pytest.mark.parametrize("name", BARS)
def test_a_strategy_saves_no_more_than_its_equations_need(name: str) -> None:
    assert hidden_states_kept(name) <= BARS[name]


def test_a_stack_of_sources_would_be_counted() -> None:
    leaf = torch.ones(B, T, D, requires_grad=True)
    with Storages() as made:
        sources = [leaf * i for i in range(3)]
        out = (torch.stack(sources) * leaf).sum(0)
    assert made.kept(but=[leaf, out]) == 3 + 3
    del sources
    assert made.kept(but=[leaf, out]) == 3


def test_tensors_held_by_a_checkpoint_are_counted() -> None:
    leaf = torch.ones(B, T, D, requires_grad=True)
    with Storages() as made:
        out = checkpoint(lambda x: (x.sin().cos() * leaf).exp(), leaf * 1.0, use_reentrant=False)
    assert made.kept(but=[leaf, out]) == 1
