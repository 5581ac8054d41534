"""Definition of the linear cross-entropy in PyTorch: the head and the loss of next tokens, in nats.

    l_n = x_n W^T;   loss_n = logsumexp(l_n) - l_n[target_n];   loss = mean_n loss_n

With a soft cap c, l_n = c tanh(x_n W^T / c).

Shape letters: N rows (tokens of a batch), D n_embd, V vocab_size.
"""

from torch import Tensor
from torch.nn import functional as F

from src.kernels.cross_entropy.softcap import cap_logits


def token_losses(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor, *, softcap: float | None = None) -> Tensor:
    """Return the cross-entropy of every row, [N]."""
    return F.cross_entropy(cap_logits(F.linear(x_ND, weight_VD), softcap), target_N, reduction="none")


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor, *, softcap: float | None = None) -> Tensor:
    """Return the mean cross-entropy, a 0-dim tensor."""
    return token_losses(x_ND, weight_VD, target_N, softcap=softcap).mean()
