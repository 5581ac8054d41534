"""Logit lens: predictions from the state after each block, by the model's own final norm and head.

    logits_b = head(ln_f(end(state after block b)))      b = 0: before the first block; after the last block: the model's

Source: nostalgebraist, "interpreting GPT: the logit lens" (2020).
Shape letters: B batch, T tokens, D n_embd, V vocab_size, L blocks, C tokens of a chunk.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.analysis.forward import Forward
from src.models.gpt import GPT

#: Tokens whose logits are in memory at once.
CHUNK = 512


@torch.no_grad()
def measure_lens(gpt: GPT, forward: Forward, targets_BT: Tensor) -> dict[str, Tensor | str]:
    """Return the `loss` in nats [B, L + 1], and the share of tokens whose `agreement` with the model's best id holds."""
    states = forward.state_BTD
    if isinstance(states, str):
        return {"loss": states, "agreement": states}
    after = [0, *(k + 1 for k, site in enumerate(forward.sites) if site.closes_block)]
    best_BT = predict(gpt, forward.hidden_BTD, targets_BT)[1]
    found = [predict(gpt, gpt.head_input(states[k]), targets_BT) for k in after]
    return {
        "loss": torch.stack([loss_BT.mean(1) for loss_BT, _ in found], dim=1),
        "agreement": torch.stack([(ids_BT == best_BT).double().mean(1) for _, ids_BT in found], dim=1),
    }


def predict(gpt: GPT, x_BTD: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next-token loss of every token and the most probable id, [B, T] each, for inputs of the head."""
    losses, ids = [], []
    x_ND, target_N = x_BTD.flatten(0, 1), targets_BT.flatten()
    for x_CD, target_C in zip(torch.split(x_ND, CHUNK), torch.split(target_N, CHUNK), strict=True):
        logits_CV = gpt.apply_head(x_CD).float()
        losses.append(F.cross_entropy(logits_CV, target_C, reduction="none"))
        ids.append(logits_CV.argmax(-1))
    return torch.cat(losses).view(targets_BT.shape), torch.cat(ids).view(targets_BT.shape)
