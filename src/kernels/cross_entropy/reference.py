"""Definition of the linear cross-entropy in PyTorch: the head and the loss of next tokens, in nats.

    loss_n = logsumexp(x_n W^T) - x_n . W[target_n];   loss = mean_n loss_n

Shape letters: N rows (tokens of a batch), D n_embd, V vocab_size.
"""

from torch import Tensor
from torch.nn import functional as F


def token_losses(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return the cross-entropy of every row, [N]."""
    return F.cross_entropy(F.linear(x_ND, weight_VD), target_N, reduction="none")


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return the mean cross-entropy, a 0-dim tensor."""
    return token_losses(x_ND, weight_VD, target_N).mean()
