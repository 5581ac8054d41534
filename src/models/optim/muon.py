"""Muon for the matrices inside the sublayers, AdamW for everything else, behind one optimizer.

    B <- m B + (1 - m) G;   U = m B + (1 - m) G                                                     Nesterov's
    W <- (1 - lr decay) W - 0.2 sqrt(max(out, in)) lr NS(U),   NS(U) nearly P Q^T, where U = P S Q^T

NS is `ns_steps` Newton-Schulz iterations in bf16. The factor gives an update the size of AdamW's (root mean square
0.2 or so), so that AdamW's lr and decay hold for both. Embeddings, positions, the head, norms, biases, scalars and
all that the residual strategy owns stay with AdamW. The fused c_attn is not one matrix [3 D, D], as torch's class
would have it, but three: Q, K and V work better each by itself (Jordan). So is each copy of an MLP that has weights
for every visit: copies are views of one parameter, which torch's step can do though its constructor refuses them.

A step that is not finite: torch's Muon knows no `found_inf`, and would read a rate held in a tensor back to the host.
So the weights are kept over the step and chosen on the device: the kept ones once `found_inf` is 1, else what torch
computed, bit for bit. Moments are not kept: after such a step no weight changes any more and nothing is saved.
A parameter takes weight, gradient, one moment, and in the step the kept weight: at most AdamW's 16 bytes.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon (what it is for; Q, K and V apart); Liu et al. 2025,
arXiv 2502.16982 (the factor, the decay); torch.optim.Muon computes it.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from src.models.attention import CausalSelfAttention
from src.models.gpt import GPT
from src.models.mlp import CopiedLinear


@dataclass(frozen=True)
class MuonKeys:
    """The keys of `optimizer.muon`.

    Args:
        momentum: m (0.95 in the source).
        ns_steps: Newton-Schulz iterations (5 in the source).
        lr_scale: these matrices' share of `optimizer.lr` (1 in the source).
    """

    momentum: float
    ns_steps: int
    lr_scale: float

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(
                f"optimizer.muon.momentum must be in [0, 1), got {self.momentum}; the source has 0.95"
            )
        if not 1 <= self.ns_steps < 100:
            raise ValueError(
                f"optimizer.muon.ns_steps must be at least 1 and below 100, got {self.ns_steps}; the source has 5"
            )
        if self.lr_scale <= 0:
            raise ValueError(
                f"optimizer.muon.lr_scale must be positive, got {self.lr_scale}; optimizer=adamw is without Muon"
            )


def hidden_matrices(gpt: GPT) -> dict[nn.Parameter, int]:
    """The weights of attention and MLP sublayers that are the trunk's own; of how many matrices their rows are.

    A weight of three axes is a matrix for each index of its first one.
    """
    strategys = set(gpt.residual.parameters())
    found: dict[nn.Parameter, int] = {}
    for site in gpt.sites:
        sublayer = gpt.sublayer(site)
        for module in sublayer.modules():
            if isinstance(module, nn.Linear | CopiedLinear) and module.weight not in strategys:
                fused = isinstance(sublayer, CausalSelfAttention) and module is sublayer.c_attn
                found[cast(nn.Parameter, module.weight)] = 3 if fused else 1
    return found


def stacked_groups(
    hidden: dict[nn.Parameter, int], lr_scale: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups of what `hidden_matrices` found."""
    kinds: dict[tuple[int, int], list[nn.Parameter]] = {}
    for param, n_stacked in hidden.items():
        kinds.setdefault((n_stacked, param.dim()), []).append(param)
    return [
        {"params": params, "n_stacked": n_stacked, "lr_scale": lr_scale, "weight_decay": weight_decay}
        for (n_stacked, _), params in kinds.items()
    ]


class StackedMuon(torch.optim.Muon):
    """torch's Muon, which also takes several matrices in one parameter, and holds still where it is told to.

    Args:
        groups: parameter groups, each with `n_stacked`: of how many matrices the rows of a parameter are.
        found_inf: 0-dim; once it is 1 no weight changes.
        settings: torch.optim.Muon's own.
    """

    def __init__(self, groups: list[dict[str, Any]], found_inf: Tensor, **settings: Any) -> None:
        flat = [all(p.dim() == 2 for p in group["params"]) for group in groups]
        super().__init__([group for group, is_flat in zip(groups, flat, strict=True) if is_flat], **settings)
        for group, is_flat in zip(groups, flat, strict=True):
            if not is_flat:
                self.add_param_group(group)  # torch's constructor refuses three axes; its step sees slices
        self.found_inf = found_inf

    def _init_group(
        self,
        group: MutableMapping[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        muon_momentum_bufs: list[Tensor],
    ) -> bool:
        whole: tuple[list[Tensor], ...] = ([], [], [])
        is_complex = super()._init_group(group, *whole)
        for tensors, matrices in zip(whole, (params_with_grad, grads, muon_momentum_bufs), strict=True):
            for tensor in tensors:
                matrices += tensor.unbind() if tensor.dim() == 3 else tensor.chunk(group["n_stacked"])
        return is_complex

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # torch's overloads
        """As torch's, unless `found_inf`."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        kept = [p.clone() for p in params]
        loss = super().step(closure)  # type: ignore[no-untyped-call]  # torch's
        stopped = self.found_inf > 0
        for param, before in zip(params, kept, strict=True):
            torch.where(stopped, before, param, out=param)
        return loss


class MuonBesideAdamW(torch.optim.Optimizer):
    """The two as one optimizer: one step, one state, the groups of both, Muon's first."""

    def __init__(self, muon: StackedMuon, adamw: torch.optim.AdamW) -> None:
        self._parts = (muon, adamw)
        self._n_muon_groups = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self.found_inf = adamw.found_inf = muon.found_inf  # type: ignore[attr-defined]  # as GradScaler sets it

    def step(self, closure: Any = None) -> Any:  # torch's overloads
        """Both steps, on this optimizer's groups and state: loading replaces them."""
        loss = None if closure is None else closure()
        muon, adamw = self._parts
        muon.param_groups = self.param_groups[: self._n_muon_groups]
        adamw.param_groups = self.param_groups[self._n_muon_groups :]
        for part in self._parts:
            part.state = self.state
            part.step()
        return loss
