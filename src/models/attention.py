"""Causal self-attention with a fused query-key-value projection, or with grouped queries.

    q, k, v = x W_qkv;  y = softmax(q k^T / sqrt(K), causal) v W_proj

With `model.qk_norm`, q and k are normed first; with `model.positions=rope` they are rotated then. With
`model.attention_scale=inverse`, q is divided by sqrt(K) once more. `model.qk_gain` multiplies normed q and k.

With `model.window_pattern`, layers attend over the nearest tokens only (see `GPTConfig.windows`); a mask of the trunk
states which.

With G = `model.n_kv_head` heads of keys and values, H / G consecutive query heads share one. Keys and values are repeated
for every query head before anything else sees them, so that strategies, embeddings and kernels are the same as without
groups; training computes as much, its weights are fewer.

Source: GPT-2 (Radford et al. 2019); names as in nanoGPT. Groups: Ainslie et al., "GQA" (arXiv 2305.13245), section 2.2;
meta-llama/llama3 @ a0940f9, llama/model.py (`repeat_kv`).
Shape letters: B batch, T tokens, D n_embd, H heads, G heads of keys and values, K head size.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from src.kernels.attention import causal_attention
from src.kernels.attention.mask import Mask, build_masks
from src.models.config import GPTConfig
from src.models.qk_norm import build_qk_norm
from src.models.rotary import build_rope, rotate
from src.residual.base import QKV

TapQKV = Callable[[Tensor | QKV, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
AddToValues = Callable[[Tensor], Tensor | None]  # from the input of the value projection


def build_layer_masks(
    config: GPTConfig, x_BTD: Tensor, document_BT: Tensor | None, *, training: bool
) -> list[Mask | None]:
    """Return the mask of each layer's attention for a forward of the sizes of `x_BTD`, None where it is all causal.

    `document_BT` has a number for the document of each token, or is None for one document.
    """
    dropout = training and config.dropout > 0
    return build_masks(x_BTD, config.windows, document_BT, head_size=config.head_size, dropout=dropout)


class CausalAttention(nn.Module):
    """Attention of projected heads; a module, so that a forward hook sees the queries and keys of a forward.

    Args:
        dropout: probability with which attention weights are zero in training.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, mask: Mask | None) -> Tensor:
        """Return the mixed values, [B, H, T, K]."""
        return causal_attention(q_BHTK, k_BHTK, v_BHTK, mask, dropout=self.dropout if self.training else 0.0)


class CausalSelfAttention(nn.Module):
    """Attention of every token over itself and earlier ones: 4 * D^2 parameters, and 4 * D biases if they are on.

    With model.qk_norm=layer it has 2 * K parameters more, with model.n_kv_head 2 * D * (H - G) * K fewer.
    """

    #: Number of matrices that lie above each other in the weight of a projection.
    stacked: dict[str, int]

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head, self.n_kv, self.head_size = config.n_head, config.n_kv, config.head_size
        self.attend = CausalAttention(config.dropout)
        inverse = config.head_size**-0.5 if config.attention_scale == "inverse" else 1.0
        self.query_scale = inverse * config.qk_gain**2  # that of the keys too
        self.rope = build_rope(config)
        self.qk_norm = build_qk_norm(config.qk_norm, config.head_size)
        self.groups_queries = self.n_kv < self.n_head
        self.stacked = {"c_attn": 1, "c_kv": 2} if self.groups_queries else {"c_attn": 3}
        self.c_attn = nn.Linear(config.n_embd, self.stacked["c_attn"] * config.n_embd, bias=config.bias)
        if self.groups_queries:
            self.c_kv = nn.Linear(config.n_embd, 2 * self.n_kv * self.head_size, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor | QKV,
        tap: TapQKV | None = None,
        add_to_values: AddToValues | None = None,
        mask: Mask | None = None,
    ) -> Tensor:
        """Map [B, T, D] (or three views of it) to [B, T, D].

        Args:
            x: input, or the inputs of the three projections.
            tap: replaces q, k, v [B, H, T, K].
            add_to_values: returns the addition [B, T, D] to the values, or None.
            mask: the earlier tokens that a token attends over; None for all.
        """
        q_BHTK, k_BHTK, v_BHTK = self._project(x, add_to_values)
        if tap is not None:
            q_BHTK, k_BHTK, v_BHTK = tap(x, q_BHTK, k_BHTK, v_BHTK)
        if self.qk_norm is not None:
            q_BHTK, k_BHTK = self.qk_norm(q_BHTK, k_BHTK)
        if self.rope is not None:
            q_BHTK, k_BHTK = rotate(q_BHTK, self.rope), rotate(k_BHTK, self.rope)
        if self.query_scale != 1:
            q_BHTK = q_BHTK * self.query_scale
        y_BHTK: Tensor = self.attend(q_BHTK, k_BHTK, v_BHTK, mask)
        B, H, T, K = y_BHTK.shape
        y_BTD: Tensor = self.resid_dropout(self.c_proj(y_BHTK.transpose(1, 2).reshape(B, T, H * K)))
        return y_BTD

    def _project(self, x: Tensor | QKV, add_to_values: AddToValues | None) -> tuple[Tensor, Tensor, Tensor]:
        if isinstance(x, QKV):
            parts = [F.linear(x_BTD, *split) for x_BTD, split in zip(x, self.split_projections(), strict=True)]
        elif self.groups_queries:
            parts = [self.c_attn(x), *self.c_kv(x).chunk(2, dim=-1)]
        else:
            parts = list(self.c_attn(x).chunk(3, dim=-1))
        if self.groups_queries:
            parts[1:] = [self._repeat(part) for part in parts[1:]]
        addition_BTD = None if add_to_values is None else add_to_values(x.v_BTD if isinstance(x, QKV) else x)
        if addition_BTD is not None:
            parts[2] = parts[2] + addition_BTD.to(parts[2].dtype)
        B, T, D = parts[0].shape
        q, k, v = (p.view(B, T, self.n_head, D // self.n_head).transpose(1, 2) for p in parts)
        return q, k, v

    def _repeat(self, x_BTG: Tensor) -> Tensor:
        """Return keys or values of G heads side by side as those of H heads, each repeated H / G times."""
        heads_BTGK = x_BTG.view(*x_BTG.shape[:-1], self.n_kv, self.head_size)
        return heads_BTGK.repeat_interleave(self.n_head // self.n_kv, dim=-2).flatten(-2)

    def split_projections(self) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """Return views of weight and bias of the query, the key and the value projection."""
        linears = (self.c_attn, self.c_kv) if self.groups_queries else (self.c_attn,)
        split: list[tuple[Tensor, Tensor | None]] = []
        for linear, count in zip(linears, self.stacked.values(), strict=True):
            biases = [None] * count if linear.bias is None else list(linear.bias.chunk(count))
            split += zip(linear.weight.chunk(count), biases, strict=True)
        return tuple(split)
