"""Whole optimizer steps for timing, and the stopwatch that times a step and its parts.

`residual_step` is a peer's function with a strategy: given an object with sizes (`StepSpec`), it returns the model, its
step, which takes one whole optimizer step and returns its loss, and its optimizer.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from src.embedding.tied import TiedEmbedding
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.models.optim.adamw import AdamW
from src.models.optim.base import OptimizerConfig, apply_gradients, build_optimizer, set_lr
from src.models.training_pass import training_pass
from src.norm.layernorm import LayerNorm
from src.residual.base import ResidualStrategy, StreamSpec

#: Called with the name of a part of a step when that part ends.
Lap = Callable[[str], None]


def no_lap(part: str) -> None:
    """Ignore the end of a part."""


class Step(Protocol):
    """One whole optimizer step on token ids and targets [B, T]: returns the loss, calls `lap` after each part."""

    def __call__(self, x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor: ...


@dataclass(frozen=True)
class StepSpec:
    """Sizes and hyperparameters of a step; any object with these attributes is accepted."""

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
    dtype: str  # float32 | bfloat16
    grad_accum: int


class Stopwatch:
    """Seconds of a step and of its parts: CPU time on a CPU; on a GPU wall time, and device time of the parts.

    Call `start`, then the stopwatch itself with a part's name at the end of each part, then `stop`; parts with one
    name add up. On a GPU a part is the time between two events in the stream, so the host waits for none of them.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"
        self._clock = time.perf_counter if self.on_gpu else time.process_time

    def start(self) -> None:
        """Wait for all earlier work of the device, then start the clock."""
        if self.on_gpu:
            torch.cuda.synchronize()
        self._names: list[str] = []
        self._marks: list[Any] = []  # CUDA events, or times
        self._start = self._clock()
        self._mark()

    def __call__(self, part: str) -> None:
        self._names.append(part)
        self._mark()

    def stop(self) -> tuple[float, dict[str, float]]:
        """Wait for the step's work and return its seconds and the seconds of each part."""
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds = self._clock() - self._start
        parts = dict.fromkeys(self._names, 0.0)
        for name, (a, b) in zip(self._names, itertools.pairwise(self._marks), strict=True):
            parts[name] += a.elapsed_time(b) / 1e3 if self.on_gpu else b - a
        return seconds, parts

    def _mark(self) -> None:
        if self.on_gpu:
            self._marks.append(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]  # torch
            self._marks[-1].record()
        else:
            self._marks.append(self._clock())


def residual_step(
    spec: StepSpec, residual: Callable[[StreamSpec], ResidualStrategy[Any]]
) -> tuple[GPT, Step, torch.optim.Optimizer]:
    """Build the eager step that `task=train` takes with a strategy, norm=layernorm, embedding=tied and AdamW.

    The step takes token ids and targets [B, T], or [A, B, T] with `grad_accum` = A > 1.
    """
    sizes = GPTConfig(
        n_layer=spec.n_layer,
        n_head=spec.n_head,
        n_embd=spec.n_embd,
        block_size=spec.block_size,
        vocab_size=spec.vocab_size,
        bias=spec.bias,
        dropout=0.0,
        gelu_approximate="none",
        norm_placement="pre",
        positions="learned",
    )
    norm = partial(LayerNorm, eps=1e-5)
    gpt = GPT(sizes, residual=residual, norm=norm, embedding=TiedEmbedding, seed=spec.seed).to(spec.device)
    keys = OptimizerConfig(
        lr=spec.lr,
        min_lr=spec.lr,
        warmup_steps=0,
        weight_decay=spec.weight_decay,
        grad_clip=spec.grad_clip,
        method=partial(AdamW, betas=(0.9, 0.95), eps=1e-8),
    )
    bf16 = spec.dtype == "bfloat16"
    return gpt, *optimizer_step(gpt, keys, bf16=bf16, compiled=False, n_micro=spec.grad_accum)


def optimizer_step(
    gpt: GPT, keys: OptimizerConfig, *, bf16: bool, compiled: bool, n_micro: int
) -> tuple[Step, torch.optim.Optimizer]:
    """Build a step with the learning rate `keys.lr` on [B, T] (or [A, B, T]), and its optimizer.

    Its parts are forward (the trunk), loss (the head, whose gradients are computed with the loss), backward and
    optimizer.
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
