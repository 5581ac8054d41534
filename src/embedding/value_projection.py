"""Value projections: in every second layer, a projection of the normed token row is added to the values, gated per head.

    e = wte[idx] / rms(wte[idx])
    v_h <- v_h + 2 sigmoid(G_l x[:n])_h (W_l e)_h        head h of a layer l with a projection; x: its values' input

x0 and the head are as in `tied`. The source's models norm the token rows and add no positions, so their x0 is e.

Source: qlabs-eng/slowrun, train.py (`ve_projs`, `ve_gate`); karpathy/nanochat, nanochat/gpt.py, has tables instead
of projections, a gate of 3 sigmoid(x[:12]) and G > 0 at init.
At init: not `tied`; all gates are 1.
Shape letters: B batch, T tokens, D n_embd, H heads, K head size, J layers with a projection, C gate channels.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from src.embedding.base import EmbeddingSpec, Lookup, number_second_layers
from src.embedding.tied import TiedEmbedding
from src.source import QK_NORM, Source


class ValueProjection(TiedEmbedding):
    """Tied embedding with projections to values; J * (D^2 + H * C) parameters more.

    Args:
        gate_channels: first channels of the values' input that the gates read, at most D (32 in the source).
    """

    source = Source(
        "qlabs-eng/slowrun, train.py",
        "qlabs-eng/slowrun",
        "fd342f02affa",
        deviations=(
            "optimizer=muon leaves projections and gates to AdamW, as all parameters of an embedding; the source gives "
            "them to Muon.",
            QK_NORM,
        ),
    )
    width_readers = ("proj_JDD",)

    def __init__(self, spec: EmbeddingSpec, *, gate_channels: Annotated[int, Field(ge=1, le=65536)]) -> None:
        super().__init__(spec)
        if gate_channels < 1:
            raise ValueError(f"embedding.gate_channels must be >= 1, got {gate_channels}; the source uses 32")
        self.slots = number_second_layers(spec.n_layer)
        n_channels = min(gate_channels, spec.n_embd)
        self.proj_JDD = nn.Parameter(torch.empty(len(self.slots), spec.n_embd, spec.n_embd))
        self.gate_JHC = nn.Parameter(torch.empty(len(self.slots), spec.n_head, n_channels))
        self.reset()

    def reset(self) -> None:
        bound = (3 / self.proj_JDD.shape[-1]) ** 0.5  # standard deviation D^-1/2
        nn.init.uniform_(self.proj_JDD, -bound, bound)
        nn.init.zeros_(self.gate_JHC)

    def lookup(self, idx_BT: Tensor) -> Lookup:
        rows_BTD = self.wte(idx_BT)
        return (F.rms_norm(rows_BTD, rows_BTD.shape[-1:]),)

    def value_addition(self, lookup: Lookup, layer: int, x_BTD: Tensor) -> Tensor | None:
        j = self.slots.get(layer)
        if j is None:
            return None
        gate_JHC, proj_DD = self.gate_JHC[j], self.proj_JDD[j]
        gate_BTH = 2 * torch.sigmoid(F.linear(x_BTD[..., : gate_JHC.shape[-1]], gate_JHC))
        value_BTHK = F.linear(lookup[0], proj_DD).view(*gate_BTH.shape, -1)
        added_BTD: Tensor = (gate_BTH[..., None] * value_BTHK).flatten(-2)
        return added_BTD
