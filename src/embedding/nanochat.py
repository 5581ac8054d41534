"""nanochat's embedding: normed token rows, each with a share of the row before it, and gated tables added to values.

    e_t = n(wte[idx_t]);   x0_t = e_t + lambda sigmoid(g . e_t[:n_smear]) e_{t-1},  x0_0 = e_0      n: RMS norm, no gain
    v_h <- v_h + 3 sigmoid(G_l x[:n_gate])_h table_l[idx]_h      head h of every second layer l; x: its values' input

The head is a table of its own. With learned positions (`model.positions`) they are added before the norm.

Source: karpathy/nanochat, nanochat/gpt.py (`smear_gate`, `value_embeds`, `ve_gate`).
At init: lambda is 0, so that x0 is the normed row; the gates of values are about 1.5.
Shape letters: B batch, T tokens, D n_embd, V vocab_size, H heads, K head size, J layers with a table, R = J * V rows,
C channels of a gate.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bounds import PositiveInt
from src.embedding.base import EmbeddingSpec, Lookup, number_second_layers
from src.embedding.untied import UntiedEmbedding
from src.source import Source


class NanochatEmbedding(UntiedEmbedding):
    """Untied embedding with a smear and J tables; J * (V * D + H * n_gate) + n_smear + 1 parameters more.

    Args:
        smear_channels: first channels of a row that the gate of its smear reads, at most D (24 in the source).
        gate_channels: first channels of the values' input that their gates read, at most D (12 in the source).
    """

    source = Source(
        "nanochat (Karpathy 2025)",
        "karpathy/nanochat",
        "92d63d4e8bb4",
        deviations=(
            "With model.n_kv_head, tables and gates have all heads; the source's have those of keys and values.",
            "The token table starts with the model-wide std 0.02 (0.8 in the source), which the norm behind it removes.",
            "Learning rates, betas and weight decay are those of the run, which optimizer.groups can set; the source has "
            "a rate for each kind of table.",
        ),
    )

    def __init__(self, spec: EmbeddingSpec, *, smear_channels: PositiveInt, gate_channels: PositiveInt) -> None:
        super().__init__(spec)
        self.slots, self.vocab_size = number_second_layers(spec.n_layer), spec.vocab_size
        self.table_RD = nn.Parameter(torch.empty(len(self.slots) * spec.vocab_size, spec.n_embd))
        self.gate_JHC = nn.Parameter(torch.empty(len(self.slots), spec.n_head, min(gate_channels, spec.n_embd)))
        self.smear_gate_C = nn.Parameter(torch.empty(min(smear_channels, spec.n_embd)))
        self.smear = nn.Parameter(torch.zeros(1))
        self.reset()

    def reset(self) -> None:
        bound = (3 / self.table_RD.shape[1]) ** 0.5  # standard deviation D^-1/2
        nn.init.normal_(self.lm_head.weight, std=0.001)
        nn.init.uniform_(self.table_RD, -bound, bound)
        nn.init.uniform_(self.gate_JHC, 0, 0.02)
        nn.init.uniform_(self.smear_gate_C, 0, 0.02)
        nn.init.zeros_(self.smear)

    def forward(self, idx_BT: Tensor) -> Tensor:
        rows_BTD = self.sum_rows(idx_BT)
        e_BTD = F.rms_norm(rows_BTD, rows_BTD.shape[-1:])
        after_BTD = e_BTD[:, 1:]
        gate_BT = self.smear * torch.sigmoid(after_BTD[..., : len(self.smear_gate_C)] @ self.smear_gate_C)
        x0_BTD = torch.cat((e_BTD[:, :1], after_BTD + gate_BT[..., None] * e_BTD[:, :-1]), dim=1)
        dropped_BTD: Tensor = self.drop(x0_BTD)
        return dropped_BTD

    def lookup(self, idx_BT: Tensor) -> Lookup:
        """Return the rows [B, T, D] of each table; one lookup has one dense gradient in its backward, not J."""
        first_J = self.vocab_size * torch.arange(len(self.slots), device=idx_BT.device)
        return F.embedding(idx_BT + first_J[:, None, None], self.table_RD).unbind()

    def value_addition(self, lookup: Lookup, layer: int, x_BTD: Tensor) -> Tensor | None:
        j = self.slots.get(layer)
        if j is None:
            return None
        gate_HC = self.gate_JHC[j]
        gate_BTH = 3 * torch.sigmoid(F.linear(x_BTD[..., : gate_HC.shape[-1]], gate_HC))
        added_BTD: Tensor = (gate_BTH[..., None] * lookup[j].view(*gate_BTH.shape, -1)).flatten(-2)
        return added_BTD

    def get_num_lookup_params(self) -> int:
        return self.wte.weight.numel() + self.table_RD.numel()
