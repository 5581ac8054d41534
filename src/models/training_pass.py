"""Forward of the trunk in training: compiled if configured, with attention for shapes that do not vary."""

from collections.abc import Callable

import torch
from torch import Tensor

from src.kernels import attention
from src.models.gpt import GPT


def training_pass(gpt: GPT, *, compiled: bool) -> Callable[[Tensor], Tensor]:
    """Return `gpt.hidden` for batches of one shape; evaluation, whose shapes vary, calls `gpt.hidden` itself."""
    hidden = torch.compile(gpt.hidden, fullgraph=True, dynamic=False) if compiled else None

    def forward(idx_BT: Tensor) -> Tensor:
        with attention.fixed_shapes(idx_BT):
            return gpt.hidden(idx_BT) if hidden is None else hidden(idx_BT)

    return forward
