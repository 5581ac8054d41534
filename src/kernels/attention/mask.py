"""Masks of causal attention: a window of the nearest tokens, and the documents of a packed sequence.

    token t attends over s   iff   s <= t   and   t - s <= window   and   document_s = document_t

A mask is a boolean matrix, its definition, which torch's `scaled_dot_product_attention` takes. Compiled on a CUDA device
it is the blocks of FlexAttention, whose kernel skips those without a pair that attends. Without a window below the
length and without documents there is no mask, and attention is causal by its fastest kernel.

Positions are those of the sequence, not of the document. Rotations depend on differences of positions only.

Source: windows: karpathy/nanochat @ 92d63d4, nanochat/gpt.py and flash_attention.py (a window of W tokens before the own
one). Documents: Grattafiori et al., "The Llama 3 Herd of Models" (arXiv 2407.21783), section 3.2. Blocks: Dong et al.,
"Flex Attention" (arXiv 2412.05496).
Shape letters: B batch, T tokens, D n_embd, H heads, K head size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from src.kernels.dispatch import Operation

#: Smallest head of FlexAttention's kernel.
MIN_HEAD_SIZE = 16


class Mask(NamedTuple):
    """Mask of one forward; one of the two is None."""

    allowed: Tensor | None  # True where token t attends over s, [T, T], or [B, 1, T, T] with documents
    blocks: BlockMask | None  # the same, for FlexAttention


def _why_not_flex(device: torch.device, dtype: torch.dtype, *, head_size: int) -> str | None:
    """Return why FlexAttention's kernel cannot run, or None."""
    return f"a head has {head_size} channels, fewer than {MIN_HEAD_SIZE}" if head_size < MIN_HEAD_SIZE else None


OPERATION = Operation("masked attention", triton=_why_not_flex)


def build_masks(
    x_BTD: Tensor, windows: Sequence[int | None], document_BT: Tensor | None, *, head_size: int, dropout: bool
) -> list[Mask | None]:
    """Return the mask of each layer; None where every token attends over all earlier ones.

    Args:
        x_BTD: any tensor of the forward, for its sizes and its device.
        windows: of each layer, the tokens before its own that a token attends over; None for all.
        document_BT: a number for the document of each token; None for one document.
        head_size: channels of a head.
        dropout: whether attention weights are dropped.
    """
    if document_BT is None and not any(windows):
        return [None] * len(windows)
    T = x_BTD.shape[1]
    shortened = [window if window is not None and window < T - 1 else None for window in windows]
    backend = OPERATION.backend_for(x_BTD, head_size=head_size)
    blocked = backend == "triton" and torch.compiler.is_compiling() and not dropout
    masks: dict[int | None, Mask | None] = {}
    for window in dict.fromkeys(shortened):
        if window is None and document_BT is None:
            masks[window] = None
        elif blocked:
            masks[window] = Mask(None, _find_blocks(x_BTD, window, document_BT))
        else:
            masks[window] = Mask(find_allowed(T, window, document_BT, x_BTD.device), None)
    return [masks[window] for window in shortened]


def find_allowed(T: int, window: int | None, document_BT: Tensor | None, device: torch.device) -> Tensor:
    """Return True where token t attends over s, [T, T], or [B, 1, T, T] with documents."""
    at_T = torch.arange(T, device=device)
    distance_TT = at_T[:, None] - at_T
    allowed_TT = distance_TT >= 0
    if window is not None:
        allowed_TT = allowed_TT & (distance_TT <= window)
    if document_BT is None:
        return allowed_TT
    return allowed_TT & (document_BT[:, None, :, None] == document_BT[:, None, None, :])


def _find_blocks(x_BTD: Tensor, window: int | None, document_BT: Tensor | None) -> BlockMask:
    B, T = x_BTD.shape[:2]

    def is_allowed(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        allowed = s <= t
        if window is not None:
            allowed = allowed & (t - s <= window)
        return allowed if document_BT is None else allowed & (document_BT[b, t] == document_BT[b, s])

    return create_block_mask(is_allowed, None if document_BT is None else B, None, T, T, device=x_BTD.device)


def attend_in_blocks(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, blocks: BlockMask) -> Tensor:
    """Return attention by FlexAttention, [B, H, T, K], in autocast's dtype if that is on, as torch's own attention."""
    device = q_BHTK.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        q_BHTK, k_BHTK, v_BHTK = q_BHTK.to(dtype), k_BHTK.to(dtype), v_BHTK.to(dtype)
    y_BHTK: Tensor = flex_attention(q_BHTK, k_BHTK, v_BHTK, block_mask=blocks)
    return y_BHTK
