"""Whole optimizer steps for timing: of a configured model, or of plain vanilla beside other implementations.

`vanilla_step` follows the factory protocol of side-by-side step benchmarks: given a namespace with sizes, it
returns (model, step_fn), where `step_fn(x, y)` does one whole optimizer step and returns its loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from src.bench.stopwatch import Lap, no_lap
from src.embedding.tied import TiedEmbedding
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.models.optim.adamw import OptimizerConfig, apply_gradients, build_optimizer, set_lr
from src.models.training_pass import training_pass
from src.norm.layernorm import LayerNorm
from src.residual.base import ResidualStrategy, StreamSpec
from src.residual.vanilla import Vanilla


class Step(Protocol):
    """One whole optimizer step on token ids and targets [B, T]; returns its loss, and tells where its parts end."""

    def __call__(self, x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor: ...


@dataclass(frozen=True)
class StepSpec:
    """What a benchmark says of the step it wants; anything with these attributes will do."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    bias: bool
    lr: float
    weight_decay: float
    grad_clip: float
    seed: int
    device: str
    dtype: str
    grad_accum: int


def vanilla_step(spec: StepSpec) -> tuple[GPT, Step]:
    """residual=vanilla, as `residual_step`."""
    gpt, step, _ = residual_step(spec, Vanilla)
    return gpt, step


def residual_step(
    spec: StepSpec, residual: Callable[[StreamSpec], ResidualStrategy[Any]]
) -> tuple[GPT, Step, torch.optim.Optimizer]:
    """A strategy with norm=layernorm, embedding=tied under AdamW, eager, as `task=train` steps it.

    `step_fn` takes token ids and targets [B, T], or [A, B, T] with `grad_accum` = A > 1.
    """
    sizes = GPTConfig(
        spec.n_layer,
        spec.n_head,
        spec.n_embd,
        spec.block_size,
        spec.vocab_size,
        spec.bias,
        dropout=0.0,
        gelu_approximate="none",
        norm_placement="pre",
        positions="learned",
    )
    norm = partial(LayerNorm, eps=1e-5)
    gpt = GPT(sizes, residual=residual, norm=norm, embedding=TiedEmbedding, seed=spec.seed).to(spec.device)
    keys = OptimizerConfig(spec.lr, spec.lr, 0, spec.weight_decay, (0.9, 0.95), 1e-8, spec.grad_clip)
    bf16 = spec.dtype == "bfloat16"
    return gpt, *optimizer_step(gpt, keys, bf16=bf16, compiled=False, n_micro=spec.grad_accum)


def optimizer_step(
    gpt: GPT, keys: OptimizerConfig, *, bf16: bool, compiled: bool, n_micro: int
) -> tuple[Step, torch.optim.Optimizer]:
    """A step at `keys.lr` on [B, T] (or [A, B, T]), and its optimizer.

    Its parts are forward (the trunk), loss (the head with its gradients, which are made there), backward and optimizer.
    """
    optimizer = build_optimizer(gpt, keys)
    set_lr(optimizer, keys.lr)
    device = next(gpt.parameters()).device
    hidden = training_pass(gpt, compiled=compiled)
    params = list(gpt.parameters())

    def step_fn(x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor:
        pairs = zip(x.view(n_micro, -1, x.shape[-1]), y.view(n_micro, -1, y.shape[-1]), strict=True)
        total = torch.zeros((), device=device)
        for idx_BT, targets_BT in pairs:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                x_BTD = hidden(idx_BT)
                lap("forward")
                loss = gpt.head_loss(x_BTD, targets_BT) / n_micro
                lap("loss")
            torch.autograd.backward(loss)
            total += loss.detach()
            lap("backward")
        apply_gradients(optimizer, params, keys.grad_clip, total)
        lap("optimizer")
        return total

    return step_fn, optimizer
