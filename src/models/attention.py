"""Causal self-attention with a fused query-key-value projection.

    q, k, v = x W_qkv;  y = softmax(q k^T / sqrt(K), causal) v W_proj

With `model.qk_norm`, q and k are normed first; with `model.positions=rope` they are rotated then. With
`model.attention_scale=inverse`, q is divided by sqrt(K) once more.

Source: GPT-2 (Radford et al. 2019); names as in nanoGPT.
Shape letters: B batch, T tokens, D n_embd, H heads, K head size.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from src.kernels.attention import causal_attention
from src.models.config import GPTConfig
from src.models.qk_norm import build_qk_norm
from src.models.rotary import rotate
from src.residual.base import QKV

TapQKV = Callable[[Tensor | QKV, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
AddToValues = Callable[[Tensor], Tensor | None]  # from the input of the value projection


class CausalAttention(nn.Module):
    """Attention of projected heads; a module, so that a forward hook sees the queries and keys of a forward.

    Args:
        dropout: probability with which attention weights are zero in training.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        """Return the mixed values, [B, H, T, K]."""
        return causal_attention(q_BHTK, k_BHTK, v_BHTK, dropout=self.dropout if self.training else 0.0)


class CausalSelfAttention(nn.Module):
    """Attention of every token over itself and earlier ones: 4 * D^2 parameters, and 4 * D biases if they are on.

    With model.qk_norm=layer it has 2 * K parameters more.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.attend = CausalAttention(config.dropout)
        self.rotates = config.positions == "rope"
        self.query_scale = (config.n_embd // config.n_head) ** -0.5 if config.attention_scale == "inverse" else 1.0
        self.qk_norm = build_qk_norm(config.qk_norm, config.n_embd // config.n_head)
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor | QKV, tap: TapQKV | None = None, add_to_values: AddToValues | None = None) -> Tensor:
        """Map [B, T, D] (or three views of it) to [B, T, D].

        Args:
            x: input, or the inputs of the three projections.
            tap: replaces q, k, v [B, H, T, K].
            add_to_values: returns the addition [B, T, D] to the values, or None.
        """
        q_BHTK, k_BHTK, v_BHTK = self._project(x, add_to_values)
        if tap is not None:
            q_BHTK, k_BHTK, v_BHTK = tap(x, q_BHTK, k_BHTK, v_BHTK)
        if self.qk_norm is not None:
            q_BHTK, k_BHTK = self.qk_norm(q_BHTK, k_BHTK)
        if self.rotates:
            q_BHTK, k_BHTK = rotate(q_BHTK), rotate(k_BHTK)
        if self.query_scale != 1:
            q_BHTK = q_BHTK * self.query_scale
        y_BHTK: Tensor = self.attend(q_BHTK, k_BHTK, v_BHTK)
        B, H, T, K = y_BHTK.shape
        y_BTD: Tensor = self.resid_dropout(self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, H * K)))
        return y_BTD

    def _project(self, x: Tensor | QKV, add_to_values: AddToValues | None) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(x, QKV):
            weights = self.c_attn.weight.chunk(3)
            biases = (None,) * 3 if self.c_attn.bias is None else self.c_attn.bias.chunk(3)
            parts = [F.linear(x_BTD, w, b) for x_BTD, w, b in zip(x, weights, biases, strict=True)]
        else:
            parts = list(self.c_attn(x).chunk(3, dim=-1))
        addition_BTD = None if add_to_values is None else add_to_values(x.v_BTD if isinstance(x, QKV) else x)
        if addition_BTD is not None:
            parts[2] = parts[2] + addition_BTD.to(parts[2].dtype)
        B, T, D = parts[0].shape
        q, k, v = (p.view(B, T, self.n_head, D // self.n_head).transpose(1, 2) for p in parts)
        return q, k, v
