"""Linear cross-entropy: the head and the loss together, so that the logits of a batch never exist at once.

    linear_cross_entropy(x, weight, target)    mean_n ( logsumexp(x_n W^T) - x_n . W[target_n] ), with gradients
    token_losses(x, weight, target)            its terms, without gradients
    ChunkLogits, log_softmax_                  logits of one chunk after the other, for scoring
    cap_logits(logits, softcap)                c tanh(logits / c), which all of these apply if they get a softcap

`reference.py` defines them. On a CPU a C++ kernel computes all of it, a tile of the vocabulary at a time (`cpp.py`). On a
GPU a Triton kernel turns a chunk's logits into its losses and their gradient (`triton_launch.py`). The fallback is
PyTorch on chunks of rows (`chunked.py`).
"""

from src.kernels.cross_entropy.chunked import (
    ChunkLogits,
    linear_cross_entropy,
    log_softmax_,
    product_dtype,
    token_losses,
)
from src.kernels.cross_entropy.softcap import cap_logits

__all__ = ["ChunkLogits", "cap_logits", "linear_cross_entropy", "log_softmax_", "product_dtype", "token_losses"]
