"""AdamW by torch, with its fused kernel where torch has one for the device.

    m <- b1 m + (1 - b1) G;   v <- b2 v + (1 - b2) G^2
    W <- (1 - lr decay) W - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

Source: Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2; torch.optim.AdamW computes it.
"""

from typing import ClassVar

import torch

from src.models.optim.groups import ParameterGroups


class AdamW(torch.optim.AdamW):
    """torch's AdamW over all parameters; two moments for each.

    Args:
        betas: b1 and b2 (0.9 and 0.95 in the reference protocol).
        eps: eps (1e-8 in the reference protocol).
    """

    #: See `base.py`.
    width_exponent: ClassVar[float] = 1.0

    def __init__(self, groups: ParameterGroups, lr: float, *, betas: tuple[float, float], eps: float) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"optimizer.betas must each be in [0, 1), got {list(betas)}")
        if eps <= 0:
            raise ValueError(f"optimizer.eps must be positive, got {eps}")
        device = groups[0]["params"][0].device
        is_fused = device.type in ("cpu", "cuda")
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=is_fused)
        if is_fused:  # torch's kernel reads `found_inf` and changes nothing while it is 1
            self.found_inf = self.non_finite = torch.zeros((), device=device)
