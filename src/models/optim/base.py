"""Contract of optimizers, and what training does the same way for each of them.

An optimizer is a subclass of `torch.optim.Optimizer` with the constructor `(groups, lr, *, <the keys of its YAML>)`.
A method is one file in this folder and one in `conf/optimizer`; no other file names it. Any class of `torch.optim`
works too: `optimizer=torch optimizer._target_=torch.optim.SGD +optimizer.momentum=0.9`.

    groups           `ParameterGroups`: torch's parameter groups, with the names of parameters and the hidden matrices.
    learning rate    `group["lr"]` is set before every step to schedule.lr(step) * group["lr_scale"].
    weight decay     `group["weight_decay"]`, for each group.
    clipping         `apply_gradients` scales all gradients to the global norm `optimizer.grad_clip` before the step.
    not finite       `optimizer.non_finite` is a tensor that becomes 1 at the first loss or gradient that is not finite.
                     From then on no step may change a weight, and nothing may be read back to the host. A constructor
                     that sets `non_finite` itself promises this; for every other optimizer `build_optimizer` adds
                     hooks that restore the weights.
    checkpoints      torch's `state_dict`: moments come from the checkpoint, the groups' options from the configuration.
    width            `width_exponent`, a class attribute: the exponent by which the rate of a matrix shrinks with width
                     under `model.base_width` (`models/transfer.py`). Without it a transfer rule is rejected.
    disk and memory  `count_state` measures what a step keeps; nothing has to be declared.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from src.models.gpt import GPT
from src.models.optim.groups import GroupRule, ParameterGroups, parameter_groups
from src.models.sharding import gather, local_part


@dataclass(frozen=True)
class OptimizerConfig:
    """Keys of `optimizer`, with nothing left open.

    Args:
        lr: the peak learning rate.
        min_lr: the rate of the last step, for schedules that decay.
        warmup_steps: steps of linear warm-up.
        weight_decay: decay of the parameters that decay.
        grad_clip: the largest global norm of the gradients; infinity clips nothing.
        method: builds the optimizer from `(groups, lr)`.
        groups: options by pattern.
    """

    lr: float
    min_lr: float
    warmup_steps: int
    weight_decay: float
    grad_clip: float
    method: Callable[..., torch.optim.Optimizer]
    groups: tuple[GroupRule, ...] = ()

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
        if self.grad_clip <= 0:
            raise ValueError(f"optimizer.grad_clip must be positive, got {self.grad_clip}; .inf clips nothing")
        if self.warmup_steps < 0:
            raise ValueError(f"optimizer.warmup_steps must not be negative, got {self.warmup_steps}")

    def make_groups(self, gpt: GPT) -> ParameterGroups:
        """Return the parameter groups of a model for this optimizer (see `parameter_groups`)."""
        exponent = getattr(getattr(self.method, "func", self.method), "width_exponent", None)
        return parameter_groups(gpt, self.lr, self.weight_decay, self.groups, exponent)


def build_optimizer(gpt: GPT, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the configured optimizer over all parameters of a model.

    Raises:
        ValueError: a pattern of `optimizer.groups` matches nothing, or the optimizer rejects a parameter.
    """
    return _build(config.make_groups(gpt), config)


def _build(groups: ParameterGroups, config: OptimizerConfig) -> torch.optim.Optimizer:
    optimizer = config.method(groups, lr=config.lr)
    if not hasattr(optimizer, "non_finite"):
        device = groups[0]["params"][0].device
        keep_weights_after_non_finite(optimizer, torch.zeros((), device=device))
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def restore_options(optimizer: torch.optim.Optimizer) -> None:
        for group, configured in zip(optimizer.param_groups, options, strict=True):
            group.update(configured)

    optimizer.register_load_state_dict_post_hook(restore_options)
    return optimizer


def keep_weights_after_non_finite(optimizer: torch.optim.Optimizer, non_finite: Tensor) -> None:
    """Make every step of an optimizer restore the weights once `non_finite` (0-dim) is 1.

    A copy of the weights lives during the step: 4 bytes a parameter. The choice is made on the device, and while
    `non_finite` is 0 the weights are what the step computed, bit for bit.
    """
    optimizer.non_finite = non_finite  # type: ignore[attr-defined]  # of this contract
    before: list[tuple[Tensor, Tensor]] = []

    def copy_weights(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        stepped = (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)
        before[:] = [(p, local_part(p.detach()).clone()) for p in stepped]

    @torch.no_grad()
    def choose_weights(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        is_stopped = non_finite > 0
        for param, copy in before:
            own = local_part(param)
            torch.where(is_stopped, copy, own, out=own)
        before.clear()

    optimizer.register_step_pre_hook(copy_weights)
    optimizer.register_step_post_hook(choose_weights)


def count_state(gpt: GPT, config: OptimizerConfig) -> int:
    """Return how many numbers the optimizer keeps from step to step.

    They are counted after a step on tensors without memory; for an optimizer that needs values for its step they are
    taken to be two for each parameter, as for AdamW.
    """
    groups = config.make_groups(gpt)
    first = groups[0]["params"][0]
    with first.fake_mode if isinstance(first, FakeTensor) else FakeTensorMode(allow_non_fake_inputs=True):
        fake = {p: nn.Parameter(torch.empty_like(p)) for group in groups for p in group["params"]}
        for param in fake.values():
            param.grad = torch.empty_like(param)
        for group in groups:
            group["params"] = [fake[p] for p in group["params"]]
        groups.names = {fake[p]: name for p, name in groups.names.items()}
        groups.matrices = {fake[p]: count for p, count in groups.matrices.items()}
        optimizer = _build(groups, config)
        try:
            optimizer.step()
        except Exception:
            return 2 * int(sum(p.numel() for p in fake))
        kept = [v for state in optimizer.state.values() for key, v in state.items() if key != "step"]
        return sum(value.numel() for value in kept if isinstance(value, Tensor))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def apply_gradients(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], grad_clip: float, loss: Tensor
) -> Tensor:
    """Clip to the global norm, take the optimizer's step, and clear the gradients.

    From the first loss or norm on that is not finite, `optimizer.non_finite` stays 1 and no weight changes; nothing is
    read back to the host.

    Returns:
        The global norm before clipping, 0-dim.
    """
    with_grad = [p for p in parameters if p.grad is not None]
    shared = nn.utils.get_total_norm([cast(Tensor, p.grad) for p in with_grad])
    norm = gather(shared)
    non_finite = getattr(optimizer, "non_finite", None)
    if non_finite is not None:
        is_finite = torch.isfinite(torch.stack((loss.detach(), norm))).all()
        torch.maximum(non_finite, (~is_finite).float(), out=non_finite)
    nn.utils.clip_grads_with_norm_(with_grad, grad_clip, shared)
    optimizer.step()
    for p in with_grad:  # as optimizer.zero_grad, which torch wraps for its profiler
        p.grad = None
    return norm
