"""Coordinate check: how far activations move in a few steps, by width and by depth, with and without a transfer rule.

    moved(size) = rms(activation after N_STEPS - activation at init);   slope of log moved against log size

Under a rule that transfers, the slopes are near 0: every activation moves as far in a wide model as in a narrow one.
Without a rule they grow with the width. The smallest size is the base size, so that both start there from the same
model. The batch is the same in every step, the rate constant and large, as the sources advise.

Source: microsoft/mup @ 1981497, README ("Coord Check") and mup/coord_check.py, which draw the size of activations
itself; the difference to init is not hidden by large initial values.
Shape letters: B batch, T tokens, D n_embd, V vocab_size, H heads, K head size.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from src.checks.base import Figures, Subject, draw_tokens
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.models.optim.base import OptimizerConfig, build_optimizer, set_lr

WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8, 16)
HEAD_SIZE, N_LAYER, DEPTH_WIDTH = 16, 2, 64
BATCH, LENGTH, VOCABULARY = 4, 16, 64
N_STEPS, RATE, SEEDS = 4, 0.004, (0, 1)
#: Largest slope of a rule that transfers; width without a rule gives 0.5 to 1, depth 0.5.
TOLERANCE = 0.3


@dataclass(frozen=True)
class Coordinates:
    """Movement of every activation by size, under one parametrization.

    Args:
        axis: width or depth.
        rule: the parametrization, in words.
        sizes: widths or depths.
        moved: rms of the difference to init by activation, one number for each size.
    """

    axis: str
    rule: str
    sizes: tuple[int, ...]
    moved: dict[str, list[float]]

    @property
    def slopes(self) -> dict[str, float]:
        """Return the slope of log moved against log size by activation; infinite where nothing moves."""
        x = np.log(self.sizes)
        return {
            name: float(np.polyfit(x, np.log(values), 1)[0]) if min(values) > 0 else math.inf
            for name, values in self.moved.items()
        }


def measure_coordinates(
    subject: Subject, optimizer: OptimizerConfig, axes: Sequence[str] = ("width", "depth")
) -> list[Coordinates]:
    """Return the movements by width and by depth, each without a rule and with it.

    Args:
        subject: the configured parts, built at other sizes.
        optimizer: the configured optimizer; its rate is replaced.
        axes: width, depth or both.
    """
    optimizer = dataclasses.replace(
        optimizer, lr=RATE, min_lr=RATE, warmup_steps=0, weight_decay=0.0, grad_clip=math.inf, groups=()
    )
    exponent = subject.config.depth_exponent
    wide = [_sizes(subject, width, N_LAYER) for width in WIDTHS]
    deep = [_sizes(subject, DEPTH_WIDTH, depth) for depth in DEPTHS]
    scaled = [dataclasses.replace(c, base_width=WIDTHS[0]) for c in wide]
    damped = [dataclasses.replace(c, base_depth=DEPTHS[0], depth_exponent=exponent) for c in deep]
    plans: list[tuple[str, str, tuple[int, ...], list[GPTConfig]]] = [
        ("width", "no rule", WIDTHS, wide),
        ("width", "model.base_width", WIDTHS, scaled),
        ("depth", "no rule", DEPTHS, deep),
        ("depth", f"model.base_depth, depth_exponent={exponent:g}", DEPTHS, damped),
    ]
    return [
        Coordinates(axis, rule, sizes, _collect([_mean_movement(subject, c, optimizer) for c in configs]))
        for axis, rule, sizes, configs in plans
        if axis in axes
    ]


def _sizes(subject: Subject, width: int, depth: int) -> GPTConfig:
    heads = width // HEAD_SIZE
    return subject.small_config(n_embd=width, n_head=heads, n_layer=depth, block_size=LENGTH, vocab_size=VOCABULARY)


def _collect(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _mean_movement(subject: Subject, config: GPTConfig, optimizer: OptimizerConfig) -> dict[str, float]:
    """Return the geometric mean over the seeds."""
    rows = _collect([_movement(subject.make(config, seed), optimizer, seed) for seed in SEEDS])
    return {name: math.prod(values) ** (1 / len(values)) for name, values in rows.items()}


def _movement(gpt: GPT, config: OptimizerConfig, seed: int) -> dict[str, float]:
    """Train on one batch, and return how far every activation has moved."""
    rows_BT = draw_tokens(BATCH, LENGTH + 1, VOCABULARY, seed=seed)
    idx_BT, targets_BT = rows_BT[:, :-1], rows_BT[:, 1:]
    optimizer = build_optimizer(gpt, config)
    set_lr(optimizer, RATE)
    gpt.follow(50, 100)
    before = record_activations(gpt, idx_BT)
    for _ in range(N_STEPS):
        torch.autograd.backward(gpt.loss(idx_BT, targets_BT))
        optimizer.step()
        optimizer.zero_grad()
    after = record_activations(gpt, idx_BT)
    return {name: _rms(after[name] - before[name]) for name in before}


@torch.no_grad()
def record_activations(gpt: GPT, idx_BT: Tensor) -> dict[str, Tensor]:
    """Return the activations of one forward by name: of the first and the last layer, and at both ends.

    Outputs of sublayers are those before the factor of the depth rule.
    """
    scores: list[Tensor] = []

    def keep_scores(module: Any, args: tuple[Tensor, ...]) -> None:
        q_BHTK, k_BHTK = args[:2]
        scores.append((q_BHTK @ k_BHTK.transpose(-1, -2) * q_BHTK.shape[-1] ** -0.5).tril())

    attention = next(gpt.sublayer(site) for site in reversed(gpt.active_sites) if site.kind == "attn")
    hook = attention.get_submodule("attend").register_forward_pre_hook(keep_scores)
    try:
        x_BTD, trace = gpt.trace(idx_BT)
    finally:
        hook.remove()
    logits_BTV = gpt.apply_head(x_BTD)
    return {
        "embedding": trace.x0_BTD,
        "first sublayer": trace.y_BTD[0] / gpt.branch_scale,
        "last scores": scores[-1],
        "last sublayer": trace.y_BTD[-1] / gpt.branch_scale,
        "end of the stream": trace.end_BTD,
        "logits": logits_BTV,
    }


def _rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def check_coordinates(
    subject: Subject, optimizer: OptimizerConfig, axes: Sequence[str] = ("width", "depth")
) -> tuple[list[str], Figures]:
    """Check that activations move as far at every size under the configured rules; strategies that reject one pass it.

    Without a configured rule there is no fault, only figures.
    """
    axes = [axis for axis in axes if axis == "width" or not rejects_depth(subject)]
    found = measure_coordinates(subject, optimizer, axes)
    is_configured = {"width": subject.config.base_width is not None, "depth": subject.config.base_depth is not None}
    faults = []
    for table in found:
        if not is_configured[table.axis] or table.rule == "no rule":
            continue
        name, slope = max(table.slopes.items(), key=lambda item: abs(item[1]))
        if not abs(slope) <= TOLERANCE:
            faults.append(
                f"under {table.rule} the activation {name!r} moves in {N_STEPS} steps as {table.axis}^{slope:.2f}; rates "
                f"transfer if the exponent is within {TOLERANCE} of 0: name parameters that sum over the width in "
                f"width_readers, or leave out model.base_{table.axis} with these parts"
            )
    figures: Figures = {
        f"exponents by {axis}:": "; ".join(format_slopes(t) for t in found if t.axis == axis) for axis in axes
    }
    figures["coordinates"] = [dataclasses.asdict(table) for table in found]
    return faults, figures


def rejects_depth(subject: Subject) -> bool:
    """Return True if the strategy scales with depth by a rule of its own."""
    gpt = subject.make(_sizes(subject, HEAD_SIZE, N_LAYER), 0)
    return any(getattr(part, "has_depth_rule", False) for part in gpt.residual.modules())


def format_slopes(table: Coordinates) -> str:
    """Return the parametrization with its smallest and its largest slope."""
    slopes = table.slopes.values()
    return f"{min(slopes):.2f} to {max(slopes):.2f} with {table.rule.partition(',')[0]}"


def format_coordinates(tables: Sequence[Coordinates]) -> str:
    """Return one table for each parametrization: the movements by size, and their slope."""
    lines = []
    for table in tables:
        lines.append(f"{table.axis}, {table.rule}: rms of the change in {N_STEPS} steps")
        sizes = "".join(f"{size:>10}" for size in table.sizes)
        lines.append(f"  {'activation':20}{sizes}{'slope':>9}")
        for name, values in table.moved.items():
            row = "".join(f"{value:>10.3g}" for value in values)
            lines.append(f"  {name:20}{row}{table.slopes[name]:>9.2f}")
    return "\n".join(lines)
