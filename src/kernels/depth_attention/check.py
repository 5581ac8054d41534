"""Whether the kernels for a GPU serve: they are tried before the first real use, on a few random rows.

They are tried once a process for each device, type and width, in value and gradient, against the plain form in
float64.

Shape letters: Q queries.
"""

import functools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from src.kernels.cpp_build import built_for
from src.kernels.depth_attention import blocked as block_sources
from src.kernels.depth_attention.blocked import Blocks, attend_in_block, emitted
from src.kernels.depth_attention.pull import new_forward
from src.kernels.dispatch import failing, residual_wanted

EPS = 1e-6
TOLERANCE = 0.02  # of the largest element: bfloat16's rounding is 0.004
WHOLE = 4  # elements that a thread loads at once


def blocks_serve(x: Tensor) -> bool:
    """Whether there are kernels for a stream of rows like those of `x`; a compiler asks once, while it traces."""
    if not torch.compiler.is_compiling() and type(x) is not Tensor:
        return False
    if x.device.type == "cpu":
        return native_serves(x)
    return residual_wanted(x.device) and cast(bool, _serve(x.device, x.dtype, x.shape[-1]))


def native_serves(x: Tensor) -> bool:
    """Whether it is those in C++, which know one type."""
    return x.device.type == "cpu" and cast(bool, _native_serves(x.dtype, x.shape[-1]))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def _native_serves(dtype: torch.dtype, width: int) -> bool:
    return built_for(dtype, width, "kernels/depth_attention/depth") is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def _serve(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    return why_not(device, dtype, width) is None


@functools.cache
def why_not(device: torch.device, dtype: torch.dtype, width: int) -> str | None:
    """Why the plain form has to run for such rows, if it has to; also logged, once."""

    def error() -> float:
        if dtype != torch.float32 or width % WHOLE:
            raise ValueError(
                f"they are for rows of float32 in a multiple of {WHOLE}, not of {dtype} in {width}"
            )
        return max(_error(device, dtype, width, kept) for kept in (dtype, torch.bfloat16))

    return failing("attention over depth", error, TOLERANCE)


def _error(device: torch.device, dtype: torch.dtype, width: int, kept: torch.dtype) -> float:
    """The largest over value and gradients of two blocks, whose sources but the first are of the type `kept`."""
    generator = torch.Generator().manual_seed(0)
    Q = 2 * block_sources.BLOCK
    drawn = torch.randn(2 * Q + 2, 1, 2, width, generator=generator, dtype=torch.float64).to(device, kept)
    values = [drawn[0].to(dtype), *drawn[1 : Q + 1]]
    key_QD = (torch.randn(Q, width, generator=generator) / width**0.5).to(device, dtype)
    given = [x.detach().requires_grad_() for x in (key_QD, *values)]
    exactly = [x.detach().double().requires_grad_() for x in given]
    results = []
    for mixtures, leaves in ((_by_kernels, given), (_plainly, exactly)):
        x_BTD = mixtures(leaves[0], leaves[1:])
        total = torch.stack(
            [(x * c.to(x.dtype)).sum() for x, c in zip(x_BTD, drawn[Q + 2 :], strict=True)]
        ).sum()
        results.append([*x_BTD, *torch.autograd.grad(total, leaves)])
    errors = [(one - other).abs().max() / other.abs().max() for one, other in zip(*results, strict=True)]
    return torch.stack(errors).nan_to_num(nan=float("inf")).max().item()


def _by_kernels(key_QD: Tensor, given: Sequence[Tensor]) -> list[Tensor]:
    blocks = Blocks(new_forward())
    values: list[Tensor] = []
    scores: list[Tensor] = []
    found = []
    for j, v_BTD in enumerate(given):
        keys = key_QD[max(j - 1, 0) :]
        blocks, v_BTD, score = emitted(blocks, values, scores, v_BTD, keys, EPS)
        values, scores = [*values, v_BTD], [*scores, score]
        if j:
            found.append(attend_in_block(blocks, -len(keys), scores, values))
    return found


def _plainly(key_QD: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
    found = []
    for q, key_D in enumerate(key_QD):
        v_BTDJ = torch.stack([*values[: q + 2]], dim=-1)
        rrms_BTJ = (v_BTDJ.square().mean(2) + EPS).rsqrt()
        weight_BTJ = ((v_BTDJ * key_D[:, None]).sum(2) * rrms_BTJ).softmax(-1)
        found.append((v_BTDJ * weight_BTJ[:, :, None]).sum(-1))
    return found
