"""DeepNorm: Post-LN with an up-weighted stream and small initial branches.

    x <- N_k(alpha x + F_k(x)),   alpha = (2 L)^(1/4)

Initial weights are Xavier normal, with gain (8 L)^(-1/4) for values, output projections and both MLP matrices and
gain 1 for queries and keys (decoder-only model of L layers).

Source: Wang et al., "DeepNet" (arXiv 2203.00555), figure 2; microsoft/torchscale (`Decoder`, `DecoderLayer`).
At init: not vanilla.
"""

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.postln import PostLN
from src.source import Source


class DeepNorm(PostLN):
    """Post-LN with constant weights; no parameters except one norm per sublayer, instead of the trunk's."""

    source: ClassVar[Source] = Source(
        "arXiv 2203.00555, figure 2",
        "microsoft/torchscale",
        "4d1e0e82e5ad",
        deviations=(
            "Matrices start with the Xavier normal values of the paper's figure 2; torchscale divides the initial "
            "values of its own modules by the same (8 L)^(1/4).",
            "The embedding is not multiplied by sqrt(D), which torchscale does by default, since the trunk starts the "
            "same under every strategy.",
        ),
    )
    has_depth_rule = True

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__(spec)
        self.alpha = (2 * spec.n_block) ** 0.25
        self.beta = (8 * spec.n_block) ** -0.25

    def init_sublayer_(self, site: Site, sublayer: nn.Module) -> None:
        if site.kind == "attn":
            (query, _), (key, _), (value, _) = cast(Any, sublayer).split_projections()  # of the trunk's attention
            nn.init.xavier_normal_(query)
            nn.init.xavier_normal_(key)
            nn.init.xavier_normal_(value, gain=self.beta)
        else:
            for name, weight in sublayer.named_parameters():
                if name in ("c_fc.weight", "c_gate.weight"):
                    self._xavier_(weight)
        self._xavier_(sublayer.get_parameter("c_proj.weight"))

    def _xavier_(self, weight: Tensor) -> None:
        for matrix in weight.unsqueeze(0).flatten(0, -3):  # an MLP with a copy for each visit has several
            nn.init.xavier_normal_(matrix, gain=self.beta)

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        x_BTD: Tensor = self.norms[self.rows[site.sublayer]](torch.add(y_BTD, state, alpha=self.alpha))
        return x_BTD
