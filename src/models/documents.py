"""Documents of packed sequences, from the token that begins each of them.

    document_t = number of marks among tokens 0 to t

A mark is the end-of-text token. It belongs to the document behind it, so that the first token of a document is predicted
from the mark alone. A document that continues from the sequence before has number 0.

Source: Grattafiori et al., "The Llama 3 Herd of Models" (arXiv 2407.21783), section 3.2: attention masked between the
documents of a sequence. As there, the mask is the only difference: positions count from the start of the sequence.
Shape letters: B batch, T tokens.
"""

import torch
from torch import Tensor


def number_documents(idx_BT: Tensor, mark: int | None) -> Tensor | None:
    """Return the number of each token's document within its sequence, [B, T]; None without a mark."""
    return None if mark is None else (idx_BT == mark).cumsum(1, dtype=torch.int32)
