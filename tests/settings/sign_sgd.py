"""An optimizer of its own, as a user would write one: sign descent with momentum."""

from typing import Any

import torch


class SignSGD(torch.optim.Optimizer):
    """W <- W - lr sign(m), m the running mean of the gradients."""

    def __init__(self, groups: Any, lr: float, *, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                mean = state.setdefault("mean", torch.zeros_like(param))
                mean.lerp_(param.grad, 1 - group["momentum"])
                param.sub_(group["lr"] * mean.sign())
        return loss
