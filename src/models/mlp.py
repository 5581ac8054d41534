"""The MLP sublayer: y = W_proj GELU(W_fc x), four times as wide inside.

Source: GPT-2 (Radford et al. 2019); names as in nanoGPT.
"""

from torch import Tensor, nn

from src.models.config import GPTConfig


class MLP(nn.Module):
    """8 * D^2 parameters (and 5 * D biases where the model has biases)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate=config.gelu_approximate)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        y_BTD: Tensor = self.resid_dropout(self.c_proj(self.gelu(self.c_fc(x_BTD))))
        return y_BTD
