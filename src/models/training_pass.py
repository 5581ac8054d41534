"""The trunk's forward as training runs it: compiled where asked, with the attention that suits its shapes."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from src.models.gpt import GPT

HOPPER = 9  # major compute capability
#: Tried in this order.
ON_HOPPER = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def training_pass(gpt: GPT, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """`gpt.hidden` for batches of one shape; evaluation, whose shapes vary, calls `gpt.hidden` itself."""
    made = torch.compile(gpt.hidden, fullgraph=True, dynamic=False) if compiled else None

    def forward(idx_BT: Tensor) -> Tensor:
        with attention_for(idx_BT.device):
            return gpt.hidden(idx_BT) if made is None else made(idx_BT)

    return forward


def attention_for(device: torch.device) -> AbstractContextManager[None]:
    """Prefer cuDNN's attention on a Hopper GPU; elsewhere torch's own order stands, and wherever cuDNN does not serve.

    Others measured 1.7 to 2.3 times torch's first choice at training shapes there, and less than it on Ampere and
    Blackwell (huggingface/transformers, pull request 48163). It makes a plan for every new shape, so that it suits
    training only.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER:
        return sdpa_kernel(list(ON_HOPPER), set_priority=True)
    return contextlib.nullcontext()
