"""Small models of plain functions, to run a strategy without a trunk."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from src.residual.base import StreamSpec, build_plain_sites

Sublayers = list[Callable[[Tensor], Tensor]]


def stream_spec(n_layer: int = 3, n_embd: int = 6) -> StreamSpec:
    return StreamSpec(n_layer, 2, n_embd, build_plain_sites(n_layer), lambda width: nn.LayerNorm(width))


def sublayers(n: int, n_embd: int = 6, seed: int = 0) -> Sublayers:
    """Build sublayers without symmetry: y = tanh(x W), each with its own matrix."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(n_embd, n_embd, generator=generator, dtype=torch.float64) for _ in range(n)]
    return [lambda x, w=w: torch.tanh(x @ w) for w in weights]  # type: ignore[misc]


def flow(strategy: Any, spec: StreamSpec, x0: Tensor, branches: Sublayers) -> Tensor:
    """Run a strategy over sublayers as the trunk does."""
    state = strategy.begin(x0)
    for site, branch in zip(spec.sites, branches, strict=True):
        x, state = strategy.read(state, site)
        state = strategy.write(state, site, branch(x))
    return strategy.end(state)


def jittered(module: nn.Module, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module.double()
    with torch.no_grad():
        for p in module.parameters():
            p += 0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    return module


def embedding_like(n_embd: int = 6) -> Tensor:
    return torch.randn(2, 4, n_embd, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
