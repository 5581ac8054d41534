"""Initial weights of the trunk and of the token tables: N(0, 0.02), smaller where a matrix projects back to the stream.

Source: GPT-2 (Radford et al. 2019), section 2.3; values as in nanoGPT.
"""

from collections.abc import Iterable

from torch import nn

from src.models.config import GPTConfig
from src.models.mlp.base import CopiedLinear
from src.models.transfer import INIT_STD, matrix_std


def draw_weights_(modules: Iterable[tuple[str, nn.Module]], config: GPTConfig) -> None:
    """Draw the weights of linear maps and tables; biases become zero.

    Args:
        modules: by name; those of sublayers have the prefix `h.`.
        config: sizes.
    """
    for name, module in modules:
        if isinstance(module, nn.Linear | nn.Embedding | CopiedLinear):
            weight = module.weight[:1] if isinstance(module, CopiedLinear) else module.weight
            std = matrix_std(config, is_output=name.endswith("c_proj")) if name.startswith("h.") else INIT_STD
            nn.init.normal_(weight, std=std)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                nn.init.zeros_(module.bias)
