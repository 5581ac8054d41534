"""Muon for the matrices inside the sublayers, AdamW for everything else, as one optimizer.

    B <- m B + (1 - m) G;   U = m B + (1 - m) G                                                     Nesterov's
    W <- (1 - lr decay) W - 0.2 sqrt(max(out, in)) lr NS(U),   NS(U) nearly P Q^T, where U = P S Q^T

NS is `ns_steps` Newton-Schulz iterations in bf16. The factor 0.2 sqrt(max(out, in)) gives an update the root mean
square of AdamW's (about 0.2), so that `optimizer.lr` and the weight decay hold for both. Embeddings, positions, the
head, norms, biases, scalars and all parameters of the residual strategy stay with AdamW.

The fused projection c_attn is three matrices, not one of [3 D, D]: Q, K and V work better each by itself (Jordan). Each
copy of an MLP that has weights for every visit is a matrix too.

A matrix takes weight, gradient, one moment and, during the step, the copy of the weight that the contract asks for
(`base.py`): at most AdamW's 16 bytes a parameter.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon (which parameters; Q, K and V apart); Liu et al. 2025,
arXiv 2502.16982 (the factor, the decay); torch.optim.Muon computes it.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from src.models.optim.adamw import AdamW
from src.models.optim.base import keep_weights_after_non_finite
from src.models.optim.groups import ParameterGroups
from src.models.sharding import gather, shard_like


@dataclass(frozen=True)
class MuonKeys:
    """Keys of `optimizer.muon`.

    Args:
        momentum: m (0.95 in the source).
        ns_steps: Newton-Schulz iterations (5 in the source).
        lr_scale: learning rate of the matrices over `optimizer.lr` (1 in the source).
    """

    momentum: float
    ns_steps: int
    lr_scale: float

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optimizer.muon.momentum must be in [0, 1), got {self.momentum}; the source has 0.95")
        if not 1 <= self.ns_steps < 100:
            raise ValueError(
                f"optimizer.muon.ns_steps must be at least 1 and below 100, got {self.ns_steps}; the source has 5"
            )
        if self.lr_scale <= 0:
            raise ValueError(
                f"optimizer.muon.lr_scale must be positive, got {self.lr_scale}; optimizer=adamw is without Muon"
            )


class Muon(torch.optim.Optimizer):
    """Muon and AdamW as one optimizer: one step, one state, the groups of both, Muon's first.

    Args:
        groups: the parameter groups; `groups.matrices` are Muon's.
        betas, eps: AdamW's.
        muon: Muon's momentum, iterations and share of the rate.
    """

    #: Of the matrices (see `base.py`): an update's spectral norm is 0.2 sqrt(max(out, in)) lr.
    width_exponent: ClassVar[float] = 0.5

    def __init__(
        self, groups: ParameterGroups, lr: float, *, betas: tuple[float, float], eps: float, muon: MuonKeys
    ) -> None:
        matrices = [split for group in groups for split in _matrix_groups(group, groups.matrices, muon.lr_scale)]
        rest = ParameterGroups()
        for group in groups:
            params = [p for p in group["params"] if p not in groups.matrices]
            if params:
                rest.append({**group, "params": params})
        adamw = AdamW(rest, lr, betas=betas, eps=eps)
        stacked = StackedMuon(
            matrices, lr=lr, momentum=muon.momentum, ns_steps=muon.ns_steps, adjust_lr_fn="match_rms_adamw"
        )
        self._parts = (stacked, adamw)
        self._n_muon_groups = len(stacked.param_groups)
        super().__init__([*stacked.param_groups, *adamw.param_groups], {})
        self.defaults = {**adamw.defaults, **stacked.defaults}  # the options that a group may set
        # One flag stops both: AdamW's kernel reads it, hooks do it for Muon.
        if not hasattr(adamw, "non_finite"):
            keep_weights_after_non_finite(adamw, torch.zeros((), device=rest[0]["params"][0].device))
        self.non_finite: Tensor = adamw.non_finite
        keep_weights_after_non_finite(stacked, self.non_finite)

    def step(self, closure: Any = None) -> Any:  # torch's overloads
        """Take both steps, on this optimizer's groups and state, which loading a checkpoint replaces."""
        loss = None if closure is None else closure()
        stacked, adamw = self._parts
        stacked.param_groups = self.param_groups[: self._n_muon_groups]
        adamw.param_groups = self.param_groups[self._n_muon_groups :]
        for part in self._parts:
            part.state = self.state
            part.step()
        return loss


def _matrix_groups(group: dict[str, Any], matrices: dict[nn.Parameter, int], lr_scale: float) -> list[dict[str, Any]]:
    """Return the matrices of a parameter group, grouped by the number of matrices in a parameter and by its axes."""
    members = set(group["params"])
    kinds: dict[tuple[int, int], list[nn.Parameter]] = {}
    for param, n_stacked in matrices.items():
        if param in members:
            kinds.setdefault((n_stacked, param.dim()), []).append(param)
    scale = lr_scale * group["lr_scale"]
    return [
        {**group, "params": params, "n_stacked": n_stacked, "lr_scale": scale}
        for (n_stacked, _), params in kinds.items()
    ]


class StackedMuon(torch.optim.Muon):
    """torch's Muon for parameters that hold several matrices each.

    Args:
        groups: parameter groups, each with `n_stacked`: the number of matrices that the rows of a parameter hold.
        settings: torch.optim.Muon's own.
    """

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        self._settings = settings
        flat = [all(p.dim() == 2 for p in group["params"]) for group in groups]
        super().__init__([group for group, is_flat in zip(groups, flat, strict=True) if is_flat], **settings)
        for group, is_flat in zip(groups, flat, strict=True):
            if not is_flat:
                self.add_param_group(group)  # torch's constructor rejects three axes; its step sees matrices

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # torch's overloads
        """Take the step; of a sharded matrix on the whole of it, which one matrix at a time is."""
        if not any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            return super().step(closure)  # type: ignore[no-untyped-call]  # torch's
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step_whole(group, param)
        return None

    def _step_whole(self, group: dict[str, Any], param: nn.Parameter) -> None:
        """Gather a matrix with its gradient and moment, take its step on every rank, keep this rank's shards."""
        assert param.grad is not None
        shape, n_stacked = param.shape, param.shape[0] if param.dim() == 3 else group["n_stacked"]
        whole = nn.Parameter(gather(param.detach()).view(-1, shape[-1]))  # matrices above each other
        whole.grad = gather(param.grad).view_as(whole)
        single = StackedMuon([{**group, "params": [whole], "n_stacked": n_stacked}], **self._settings)
        for key, moment in self.state[param].items():
            single.state[whole][key] = gather(moment).view_as(whole)
        single.step()
        param.copy_(shard_like(whole.detach().view(shape), param))
        for key, moment in single.state[whole].items():
            self.state[param][key] = shard_like(moment.view(shape), param)

    def _init_group(
        self,
        group: MutableMapping[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        muon_momentum_bufs: list[Tensor],
    ) -> bool:
        """Split parameters, gradients and moments into matrices: views, which torch's step updates in place."""
        whole: tuple[list[Tensor], ...] = ([], [], [])
        is_complex = super()._init_group(group, *whole)
        for tensors, matrices in zip(whole, (params_with_grad, grads, muon_momentum_bufs), strict=True):
            for tensor in tensors:
                matrices += tensor.unbind() if tensor.dim() == 3 else tensor.chunk(group["n_stacked"])
        return is_complex
