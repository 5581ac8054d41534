"""Transformer layer: attention and MLP with the norms around them.

    pre  F(N(x))        sandwich  N'(F(N(x)))        output  N'(F(x))

Source: GPT-2 (Radford et al. 2019), section 2.3 (pre); Gemma 2 (arXiv 2408.00118), section 2, and MLS-Bench
llm-pretrain-normalization, baseline `rmsnorm_post` (sandwich); OLMo 2 (arXiv 2501.00656), section 3.1 (output).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from src.kernels.attention.mask import Mask
from src.kernels.autocast import suspend_autocast
from src.models.attention import AddToValues, CausalSelfAttention, TapQKV
from src.models.config import NORM_PLACEMENTS, GPTConfig
from src.models.mlp.base import MLP
from src.residual.base import QKV, ResidualStrategy, Site

BranchNorms = tuple[nn.Module | None, nn.Module | None]  # on the input, on the output


class ViewNorms(nn.Module):
    """One norm for each input of attention's projections, for strategies with `norms_each_view`."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.q, self.k, self.v = make(), make(), make()

    def forward(self, x: Tensor | QKV) -> QKV:
        """Norm three views [B, T, D], or one tensor three times."""
        q_BTD, k_BTD, v_BTD = x if isinstance(x, QKV) else (x, x, x)
        return QKV(self.q(q_BTD), self.k(k_BTD), self.v(v_BTD))


class Tap:
    """Callable for attention that runs `note_input` and `tap_qkv` outside autocast and keeps the new state."""

    def __init__(self, residual: ResidualStrategy[Any], site: Site, state: object) -> None:
        self.residual, self.site, self.state = residual, site, state

    def __call__(
        self, x: Tensor | QKV, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        with suspend_autocast(q_BHTK):
            self.state = self.residual.note_input(self.state, self.site, x)
            *qkv, self.state = self.residual.tap_qkv(self.state, self.site, q_BHTK, k_BHTK, v_BHTK)
        q_BHTK, k_BHTK, v_BHTK = qkv
        return q_BHTK, k_BHTK, v_BHTK


class Block(nn.Module):
    """Attention and MLP of a layer, each with the norms that the trunk builds for it.

    Args:
        config: sizes.
        attn_norms, mlp_norms: norms on the input and on the output of each sublayer; None for no norm.
            `attn_norms` is None if no visit includes the attention of this layer, which then has none.
        mlp: the MLP.
    """

    def __init__(self, config: GPTConfig, attn_norms: BranchNorms | None, mlp_norms: BranchNorms, mlp: MLP) -> None:
        super().__init__()
        if attn_norms is not None:
            self.ln_1, self.ln_1_out = attn_norms
            self.attn = CausalSelfAttention(config)
        self.ln_2, self.ln_2_out = mlp_norms
        self.mlp = mlp

    def branch(
        self,
        site: Site,
        x: Tensor | QKV,
        tap: TapQKV | None,
        add_to_values: AddToValues | None,
        mask: Mask | None,
    ) -> Tensor:
        """Apply one sublayer with its norms, [B, T, D] -> [B, T, D]."""
        y_BTD: Tensor
        if site.kind == "attn":
            norm_out, y_BTD = self.ln_1_out, self.attn(apply_norm(self.ln_1, x), tap, add_to_values, mask)
        else:
            norm_out, y_BTD = self.ln_2_out, self.mlp(apply_norm(self.ln_2, x), site.visit)
        if norm_out is not None:
            y_BTD = norm_out(y_BTD)
        return y_BTD


def build_branch_norms(
    config: GPTConfig, strategy: ResidualStrategy[Any], site: Site, make: Callable[[], nn.Module]
) -> BranchNorms:
    """Build the norms of the trunk around one sublayer.

    Raises:
        ValueError: the strategy places norms itself, and the placement is not pre.
    """
    before, after = NORM_PLACEMENTS[config.norm_placement]
    if strategy.owns_norm(site):
        if after:
            raise ValueError(
                f"model.norm_placement must be pre with {type(strategy).__name__}, which places the norms of its "
                f"branches itself, got {config.norm_placement}; give model.norm_placement=pre or another residual"
            )
        return None, None
    norm: nn.Module | None = None
    if before:
        norm = ViewNorms(make) if site.kind == "attn" and strategy.norms_each_view(site) else make()
    return norm, make() if after else None


def apply_norm(norm: nn.Module | None, x: Tensor | QKV) -> Tensor | QKV:
    """Return the normed input of a sublayer; the views in `QKV` are normed one by one, by one norm or by three."""
    if norm is None:
        return x
    if isinstance(norm, ViewNorms) or isinstance(x, Tensor):
        normed: Tensor | QKV = norm(x)
        return normed
    return QKV(*map(norm, x))


def add_to_views(x: Tensor | QKV, addition_BTD: Tensor | None) -> Tensor | QKV:
    """Return a sublayer's input plus an addition, to each of the views in `QKV`."""
    if addition_BTD is None:
        return x
    return QKV(*(part + addition_BTD for part in x)) if isinstance(x, QKV) else x + addition_BTD
