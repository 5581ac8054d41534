"""Effect on the loss of leaving out one sublayer, or one block.

The output of the left-out sublayer is replaced by zeros before anything is added to it. Everything else runs: norms,
gates and mixing of the strategy at this site, later sites that attend over its output (now a zero source), and what a
strategy takes from inside the attention, such as the values of the first layer. A block is one visit to a layer; with a
recurrence, the other visits to the layer stay.

    effect = loss without it - loss of the model      in nats per token, on the same tokens; positive: it was of use

Source: Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks" (arXiv 1605.06431), section
4.1 (one layer left out).
Shape letters: B batch, T tokens, S sites, L blocks.
"""

import torch
from torch import Tensor

from src.models.gpt import GPT
from src.models.trace import NullRecorder
from src.residual.base import Site


class LeaveOut(NullRecorder):
    """Recorder that replaces the outputs of some sites by zeros."""

    def __init__(self, indices: set[int]) -> None:
        self.indices = indices

    def replace_output(self, site: Site, y_BTD: Tensor) -> Tensor:
        return torch.zeros_like(y_BTD) if site.index in self.indices else y_BTD


def measure_leave_out(
    gpt: GPT, idx_BT: Tensor, targets_BT: Tensor, document_BT: Tensor | None = None
) -> dict[str, Tensor | str]:
    """Return the model's `loss` [B], and the effects of each `sublayer` [B, S] and each `block` [B, L].

    Attention stays within tokens of one number in `document_BT`, if it is given.
    """
    sites = gpt.active_sites
    blocks = dict.fromkeys(site.block for site in sites)
    loss_B = sequence_losses(gpt, idx_BT, targets_BT, set(), document_BT)

    def measure(groups: list[set[int]]) -> Tensor:
        losses = [sequence_losses(gpt, idx_BT, targets_BT, group, document_BT) for group in groups]
        return torch.stack(losses, dim=1) - loss_B[:, None]

    return {
        "loss": loss_B,
        "sublayer": measure([{site.index} for site in sites]),
        "block": measure([{site.index for site in sites if site.block == block} for block in blocks]),
    }


@torch.no_grad()
def sequence_losses(
    gpt: GPT, idx_BT: Tensor, targets_BT: Tensor, left_out: set[int], document_BT: Tensor | None = None
) -> Tensor:
    """Return the mean loss of every sequence in nats, [B], without the sites of these indices."""
    return gpt.token_losses(idx_BT, targets_BT, LeaveOut(left_out), document_BT).double().mean(1)
