"""Forward of the trunk in training: compiled if configured, with attention for shapes that do not vary."""

from collections.abc import Callable

import torch
from torch import Tensor

from src.kernels import attention
from src.models.documents import number_documents
from src.models.gpt import GPT


def training_pass(gpt: GPT, *, compiled: bool, document_mark: int | None = None) -> Callable[[Tensor], Tensor]:
    """Return `gpt.hidden` for batches of one shape; evaluation, whose shapes vary, calls `gpt.hidden` itself.

    With `document_mark`, the id that begins each document, attention stays within documents.
    """
    hidden = torch.compile(gpt.hidden, fullgraph=True, dynamic=False) if compiled else None

    def forward(idx_BT: Tensor) -> Tensor:
        documents = () if document_mark is None else (None, number_documents(idx_BT, document_mark))
        with attention.fixed_shapes(idx_BT):
            return gpt.hidden(idx_BT, *documents) if hidden is None else hidden(idx_BT, *documents)

    return forward
