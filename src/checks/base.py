"""What a preflight check is given, and what it says.

A check is a function from a `Subject` to a list of faults, each one sentence with the place and the way to
mend it; no fault means that it holds. A check may also leave figures for the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from src.models.config import GPTConfig
from src.models.gpt import GPT

Figures = dict[str, Any]

#: Width, heads, context and vocabulary of the small model; the depth is the configured one.
WIDTH, HEADS, CONTEXT, VOCABULARY = 32, 2, 16, 64


@dataclass(frozen=True)
class Subject:
    """A configured model, buildable at any size.

    Args:
        make: builds a GPT of the given sizes and seed from the configured parts.
        config: the configured sizes.
    """

    make: Callable[[GPTConfig, int], GPT]
    config: GPTConfig

    def small(self, *, jittered: bool, dtype: torch.dtype = torch.float64, seed: int = 0) -> GPT:
        """The configured depth, 32 wide; jittered: every parameter moved off its start.

        A fault behind a gate that starts at zero cannot be seen at the start.
        """
        gpt = self.make(self.sizes(), seed).to(dtype)
        gpt.follow(50, 100)
        if jittered:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for param in gpt.parameters():
                    noise = torch.randn(param.shape, generator=generator, dtype=param.dtype)
                    param.add_(noise, alpha=0.1)
        return gpt

    def sizes(self, **changes: Any) -> GPTConfig:
        """The small sizes, some changed."""
        values = {
            "n_head": HEADS,
            "n_embd": WIDTH,
            "block_size": CONTEXT,
            "vocab_size": VOCABULARY,
            "dropout": 0.0,
        }
        return replace(self.config, **{**values, **changes})


@dataclass
class Finding:
    """What a check found."""

    name: str
    faults: list[str]
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it holds."""
        return not self.faults


def tokens(batch: int = 3, length: int = CONTEXT, vocab_size: int = VOCABULARY, seed: int = 0) -> Tensor:
    """Independent uniform ids [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch, length), generator=generator)


def where(state: str) -> str:
    """How a sentence names the state of the parameters."""
    return "at init" if state == "init" else "once the parameters have moved (at init a zero gate hides it)"
