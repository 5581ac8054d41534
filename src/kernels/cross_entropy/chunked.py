"""Linear cross-entropy on chunks of rows in PyTorch, and the selection of its backend.

    loss = mean_n ( logsumexp(x_n W^T) - x_n . W[target_n] )

With a soft cap, the logits are c tanh(x_n W^T / c) (`softcap.py`).

The forward computes the gradients too, chunk by chunk, because each chunk's logits exist only then: of N x V logits at
most `CHUNK_ROWS` x V exist at a time. It equals `F.cross_entropy` on the full logits, in value and gradient, to float32
rounding. torch has `F.linear_cross_entropy` only from 2.13 on.

Source: Wijmans et al., "Cut Your Losses" (arXiv 2411.09009), section 3; Liger-Kernel's gradient in the forward.
Shape letters: N rows (tokens of a batch), D n_embd, V vocab_size, C rows of a chunk, L rows lost to underflow, R rows of
the head.
"""

import torch
from torch import Tensor

from src.kernels.cross_entropy import cpp, triton_launch
from src.kernels.cross_entropy.softcap import cap_logits_, compute_slope
from src.kernels.custom_op import Context
from src.kernels.dispatch import Operation

# Measured on a CPU with V = 50304: 256 rows take 0.9 of the time of 512 and half the memory; 128 gain nothing.
CHUNK_ROWS = 256
# Counted for a GPU under bfloat16: a chunk reads and writes all of dW, 12 D V bytes, and its logits are 12 C V, so that
# from C = D on dW is the lesser part. With V = 50304 these rows take 0.4 GB.
GPU_CHUNK_ROWS = 4096
# Rows of logits (16 or 64: the same) and numbers of a gradient that a CPU converts at a time, to stay in its cache.
CONVERTED_ROWS, ADDED_NUMBERS = 32, 2**18
# A float32 probability below this is about to lose digits; its logarithm is -69.
SMALLEST = 1e-30

OPERATION = Operation("linear cross-entropy", cpp=cpp.why_not, triton=triton_launch.why_not)


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor, *, softcap: float | None = None) -> Tensor:
    """Return the mean cross-entropy in nats of the logits `x W^T` against `target`, a 0-dim tensor.

    Matrix products run in the autocast dtype if autocast is on, cap and log-sum-exp in float32 or wider.
    """
    if not torch.is_grad_enabled():  # else the function below would compute gradients that nobody reads
        return token_losses(x_ND, weight_VD, target_N, softcap=softcap).mean()
    dtype = product_dtype(x_ND)
    with torch.autocast(x_ND.device.type, enabled=False):
        loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # torch
            x_ND, weight_VD, target_N, dtype, softcap
        )
    return loss


@torch.no_grad()
def token_losses(x_ND: Tensor, weight_VD: Tensor, target_N: Tensor, *, softcap: float | None = None) -> Tensor:
    """Return the cross-entropy in nats of every row, [N], without gradients; equal to the loss's terms to rounding."""
    dtype = product_dtype(x_ND)
    backend = OPERATION.backend_for(x_ND, **_list_sizes(x_ND, dtype, softcap))
    w_VD = weight_VD.to(dtype)
    if backend == "cpp":
        return cpp.load_kernel(dtype, x_ND.shape[-1])(x_ND.to(dtype), w_VD, target_N, False, False)[0]
    loss_N = torch.empty(x_ND.shape[0], dtype=_accumulation_dtype(x_ND.dtype), device=x_ND.device)
    with torch.autocast(x_ND.device.type, enabled=False):
        logits = ChunkLogits(x_ND, w_VD, softcap)
        for at in range(0, x_ND.shape[0], logits.rows):
            rows = slice(at, at + logits.rows)
            x_CD, target_C = x_ND[rows].to(dtype), target_N[rows]
            if backend == "triton":
                loss_N[rows] = triton_launch.losses_(logits.product(x_CD), target_C, gradient=False, softcap=softcap)
            else:
                loss_N[rows] = -log_softmax_(logits(x_CD)).gather(1, target_C[:, None])[:, 0]
    return loss_N


class ChunkLogits:
    """Logits of one chunk after the other in the same memory: fresh pages cost a CPU as much as the product.

    Args:
        x_ND: rows of all chunks; its dtype is that of log-sum-exp, if it is wider than float32.
        w_VD: the head, in the dtype of the products.
        softcap: bound of the logits; None: no bound.
    """

    def __init__(self, x_ND: Tensor, w_VD: Tensor, softcap: float | None) -> None:
        self.w_VD, self.softcap = w_VD, softcap
        self.rows = CHUNK_ROWS if x_ND.device.type == "cpu" else GPU_CHUNK_ROWS
        self._product_CV = w_VD.new_empty(min(self.rows, x_ND.shape[0]), w_VD.shape[0])
        self.accumulation = _accumulation_dtype(x_ND.dtype)
        same = self.accumulation == w_VD.dtype
        self._wide_CV = self._product_CV if same else self._product_CV.new_empty(0, dtype=self.accumulation)

    def product(self, x_CD: Tensor) -> Tensor:
        """Return `x W^T`, [C, V], uncapped and in the dtype of the products; the next call overwrites it."""
        return torch.mm(x_CD, self.w_VD.T, out=self._product_CV[: x_CD.shape[0]])

    def __call__(self, x_CD: Tensor) -> Tensor:
        """Return the logits, [C, V], in float32 or wider; the next call overwrites them."""
        logits_CV = self.product(x_CD)
        if self._wide_CV is not self._product_CV:
            self._wide_CV.resize_(self._product_CV.shape)  # in the first call
            logits_CV = self._wide_CV[: x_CD.shape[0]].copy_(logits_CV)
        return cap_logits_(logits_CV, self.softcap)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        x_ND: Tensor,
        weight_VD: Tensor,
        target_N: Tensor,
        dtype: torch.dtype,
        softcap: float | None,
    ) -> Tensor:
        w_VD = weight_VD.to(dtype)
        needs_x, needs_w = ctx.needs_input_grad[:2]
        backend = OPERATION.backend_for(x_ND, **_list_sizes(x_ND, dtype, softcap))
        if backend == "cpp":
            kernel = cpp.load_kernel(dtype, x_ND.shape[-1])
            loss_N, dx_ND, dw_VD = kernel(x_ND.to(dtype), w_VD, target_N, needs_x, needs_w)
            pairs = zip((dx_ND, dw_VD), (x_ND.dtype, weight_VD.dtype), strict=True)
            ctx.save_for_backward(*(None if grad is None else grad.to(wanted) for grad, wanted in pairs))
            return loss_N.mean()
        dx_ND = torch.empty_like(x_ND) if needs_x else None
        dw_VD = torch.zeros_like(weight_VD) if needs_w else None
        loss_N = torch.empty(x_ND.shape[0], dtype=_accumulation_dtype(x_ND.dtype), device=x_ND.device)
        logits, mean = ChunkLogits(x_ND, w_VD, softcap), 1.0 / x_ND.shape[0]
        for at in range(0, x_ND.shape[0], logits.rows):
            rows = slice(at, at + logits.rows)
            # Logits of the chunk, which their gradient replaces.
            x_CD = x_ND[rows].to(dtype)
            loss_N[rows], dlogits_CV = _losses_and_gradient(backend, logits, x_CD, target_N[rows])
            # Gradients of the mean through the head's product.
            if dx_ND is not None:
                dx_ND[rows] = (dlogits_CV @ w_VD).mul_(mean)
            if dw_VD is not None:
                if dw_VD.dtype == dtype:
                    dw_VD.addmm_(dlogits_CV.T, x_CD, alpha=mean)
                else:
                    _add_(dw_VD, dlogits_CV.T @ x_CD, mean)
        ctx.save_for_backward(dx_ND, dw_VD)
        return loss_N.mean()

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        dx_ND, dw_VD = ctx.saved_tensors
        if grad.device.type == "cpu" and grad.item() == 1:  # on a GPU `item` would wait for the device
            return dx_ND, dw_VD, None, None, None
        parts = None if dx_ND is None else dx_ND * grad, None if dw_VD is None else dw_VD * grad
        return *parts, None, None, None


def _losses_and_gradient(backend: str, logits: ChunkLogits, x_CD: Tensor, target_C: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy of each row, [C], and its gradient by `x W^T`, [C, V], in the logits' memory."""
    logits_CV, on_cpu, softcap = logits.product(x_CD), x_CD.device.type == "cpu", logits.softcap
    if backend == "triton":
        return triton_launch.losses_(logits_CV, target_C, gradient=True, softcap=softcap), logits_CV
    loss_C = torch.empty(len(x_CD), dtype=logits.accumulation, device=x_CD.device)
    converts = logits_CV.dtype != logits.accumulation or softcap is not None
    n_rows = CONVERTED_ROWS if on_cpu and converts else len(x_CD)
    for at in range(0, len(x_CD), n_rows):
        rows = slice(at, at + n_rows)
        # Probabilities in the accumulation dtype, and the slope of the soft cap.
        p_CV, target_C1 = cap_logits_(logits_CV[rows].to(logits.accumulation), softcap), target_C[rows, None]
        slope_CV = None if softcap is None else compute_slope(p_CV, softcap)
        if on_cpu:
            torch.softmax(p_CV, -1, out=p_CV)
            p_C = p_CV.gather(1, target_C1)[:, 0]
            loss_C[rows] = _losses_from_probabilities(p_C, logits.w_VD, x_CD[rows], target_C[rows], softcap)
        else:
            loss_C[rows] = _softmax_(p_CV, target_C1)
        # Their difference from the one-hot target, times that slope, is the gradient.
        p_CV.scatter_add_(1, target_C1, torch.full_like(p_CV[:, :1], -1.0))
        if slope_CV is not None:
            p_CV.mul_(slope_CV)
        if p_CV.dtype != logits_CV.dtype:
            logits_CV[rows] = p_CV
    return loss_C, logits_CV


def _add_(sum_VD: Tensor, part_VD: Tensor, scale: float) -> None:
    """Add `scale * part`, which has a narrower dtype, to a sum.

    A CPU would take longer in one call: it converts slowly there, or fills memory that its cache does not hold.
    """
    n_rows = len(sum_VD) if sum_VD.device.type != "cpu" else max(1, ADDED_NUMBERS // sum_VD.shape[1])
    for sum_RD, part_RD in zip(torch.split(sum_VD, n_rows), torch.split(part_VD, n_rows), strict=True):
        sum_RD.add_(part_RD.to(sum_VD.dtype), alpha=scale)


def _losses_from_probabilities(
    p_C: Tensor, w_VD: Tensor, x_CD: Tensor, target_C: Tensor, softcap: float | None
) -> Tensor:
    """Return the losses of targets with probabilities `p`; where these underflow, from logits computed again.

    It reads values, for which a GPU would have to be waited for.
    """
    loss_C = -p_C.log()
    lost_L = (p_C < SMALLEST).nonzero()[:, 0]
    if len(lost_L):
        logits_LV = cap_logits_((x_CD[lost_L] @ w_VD.T).to(loss_C.dtype), softcap)
        of_target_L = logits_LV.gather(1, target_C[lost_L, None])[:, 0]
        loss_C[lost_L] = logits_LV.logsumexp(-1) - of_target_L
    return loss_C


def _softmax_(logits_CV: Tensor, target_C1: Tensor) -> Tensor:
    """Turn logits into probabilities in place, and return the cross-entropy of each row, [C].

    The largest probability gives the log-sum-exp: it is at least 1 / V, while a target's own may underflow.
    """
    top_C1, of_target_C1 = logits_CV.amax(-1, keepdim=True), logits_CV.gather(1, target_C1)
    p_CV = torch.softmax(logits_CV, -1, out=logits_CV)
    return (top_C1 - of_target_C1 - p_CV.amax(-1, keepdim=True).log())[:, 0]


def log_softmax_(logits_CV: Tensor) -> Tensor:
    """Turn logits into log-probabilities in place, and return them."""
    logp_CV: Tensor = torch.ops.aten._log_softmax.out(logits_CV, -1, False, out=logits_CV)
    return logp_CV


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with `x`: autocast's if it is on."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def _list_sizes(x: Tensor, dtype: torch.dtype, softcap: float | None) -> dict[str, object]:
    """Return what kernels of a case depend on, besides device and dtype of `x`."""
    sizes: dict[str, object] = {"width": x.shape[-1], "products": dtype}
    return sizes if softcap is None else {**sizes, "softcap": softcap}


def _accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
