"""AdamW with the reference protocol's groups (Muon beside it: `muon.py`).

Source: nanoGPT's groups (weight decay on tensors of at least two dimensions); MLS-Bench's protocol.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from src.models.gpt import GPT
from src.models.optim.muon import MuonBesideAdamW, MuonKeys, StackedMuon, hidden_matrices, stacked_groups
from src.residual.base import ParamGroup


@dataclass(frozen=True)
class OptimizerConfig:
    """The keys of `optimizer`, with nothing left open; without `muon`, AdamW has all parameters.

    Raises:
        ValueError: a value that no run can mean, naming key, value, bound and way out.
    """

    lr: float
    min_lr: float
    warmup_steps: int
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    grad_clip: float
    muon: MuonKeys | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr must be positive, got {self.lr}; the reference uses 3e-4")
        if not 0 <= self.min_lr <= self.lr:
            raise ValueError(
                f"optimizer.min_lr must lie between 0 and optimizer.lr={self.lr}, got {self.min_lr}; "
                "null means a tenth of optimizer.lr"
            )
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay must not be negative, got {self.weight_decay}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas must each be in [0, 1), got {list(self.betas)}")
        if self.eps <= 0:
            raise ValueError(f"optimizer.eps must be positive, got {self.eps}")
        if self.grad_clip <= 0:
            raise ValueError(f"optimizer.grad_clip must be positive, got {self.grad_clip}; .inf clips nothing")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must not be negative, got {self.warmup_steps}")


def parameter_groups(gpt: GPT) -> Iterator[ParamGroup]:
    """Trunk tensors of two and more dimensions (decayed), the rest of the trunk, the strategy's own."""
    own = {id(p) for p in gpt.residual.parameters()}
    trunk = [p for p in gpt.parameters() if id(p) not in own]
    copied = {id(p) for p in gpt.copied_params()}
    matrices = {id(p) for p in trunk if p.dim() - (id(p) in copied) >= 2}
    yield ParamGroup(tuple(p for p in trunk if id(p) in matrices), decay=True)
    yield ParamGroup(tuple(p for p in trunk if id(p) not in matrices))
    grouped: set[int] = set()
    for group in gpt.residual.param_groups():
        grouped.update(map(id, group.params))
        yield group
    left = [name for name, p in gpt.residual.named_parameters() if id(p) not in grouped]
    if left:
        raise ValueError(f"{type(gpt.residual).__name__}.param_groups() leaves out {', '.join(left)}")


def build_optimizer(gpt: GPT, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over `parameter_groups`, fused where torch has a kernel for the device; `config.muon` takes some over."""
    hidden = {} if config.muon is None else hidden_matrices(gpt)
    groups = [
        {
            "params": [p for p in group.params if p not in hidden],
            "lr_scale": group.lr_scale,
            "weight_decay": config.weight_decay if group.decay else 0.0,
        }
        for group in parameter_groups(gpt)
        if any(p not in hidden for p in group.params)
    ]
    device = next(gpt.parameters()).device
    adamw = torch.optim.AdamW(
        groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=device.type in ("cpu", "cuda")
    )
    # What AdamW's fused step reads: at 1 it changes nothing. A tensor, so that the host need not wait for it.
    found_inf = torch.zeros((), device=device)
    adamw.found_inf = found_inf  # type: ignore[attr-defined]  # as GradScaler sets it
    if config.muon is None:
        return adamw
    muon = StackedMuon(
        stacked_groups(hidden, config.muon.lr_scale, config.weight_decay),
        found_inf,
        lr=config.lr,
        momentum=config.muon.momentum,
        ns_steps=config.muon.ns_steps,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonBesideAdamW(muon, adamw)


def moment_count(gpt: GPT, config: OptimizerConfig) -> int:
    """Numbers that the optimizer keeps from step to step: two for each of AdamW's, one for each of Muon's."""
    ones = 0 if config.muon is None else sum(p.numel() for p in hidden_matrices(gpt))
    return 2 * sum(p.numel() for p in gpt.parameters()) - ones


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def apply_gradients(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], grad_clip: float, loss: Tensor
) -> Tensor:
    """Clip to the global norm, step, clear; returns the norm before clipping, 0-dim.

    From the first loss or norm on that is not finite, `optimizer.found_inf` stays 1 and no weight changes; nothing
    is read back to the host.
    """
    owners = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([cast(Tensor, p.grad) for p in owners])
    stopped = getattr(optimizer, "found_inf", None)
    if stopped is not None:
        finite = torch.isfinite(torch.stack((loss.detach(), norm))).all()
        torch.maximum(stopped, (~finite).float(), out=stopped)
    nn.utils.clip_grads_with_norm_(owners, grad_clip, norm)
    optimizer.step()
    for p in owners:  # as optimizer.zero_grad, which torch wraps for its profiler
        p.grad = None
    return norm
