"""Contract of a check: a function from a `Subject` to a list of faults, and optionally figures for the table.

A fault is one sentence with the location and a way to fix it. A check without faults has passed.
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
    """Configured model that can be built at any size.

    Args:
        make: builds a GPT of the given sizes and seed from the configured parts.
        config: the configured sizes.
    """

    make: Callable[[GPTConfig, int], GPT]
    config: GPTConfig

    def build_small(self, *, jittered: bool, dtype: torch.dtype = torch.float64) -> GPT:
        """Build the model at the configured depth, 32 wide.

        `jittered` moves every parameter off its initial value: a gate that is zero at initialization hides the faults
        behind it.
        """
        gpt = self.make(self.small_config(), 0).to(dtype)
        gpt.follow(50, 100)
        if jittered:
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for param in gpt.parameters():
                    noise = torch.randn(param.shape, generator=generator, dtype=param.dtype)
                    param.add_(noise, alpha=0.1)
        return gpt

    def small_config(self, **changes: Any) -> GPTConfig:
        """Return the small sizes with `changes` applied."""
        small = {"n_head": HEADS, "n_embd": WIDTH, "block_size": CONTEXT, "vocab_size": VOCABULARY, "window_size": None}
        no_rule = {"base_width": None, "base_depth": None, "depth_exponent": 1.0}  # the small model is not a transfer
        return replace(self.config, **{**small, **no_rule, "dropout": 0.0, **changes})


@dataclass
class Finding:
    """Result of one check: faults, figures for the table, and its duration."""

    name: str
    faults: list[str]
    figures: Figures = field(default_factory=dict)
    seconds: float = 0.0


def draw_tokens(batch: int = 3, length: int = CONTEXT, vocab_size: int = VOCABULARY, seed: int = 0) -> Tensor:
    """Draw independent uniform ids [batch, length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(vocab_size, (batch, length), generator=generator)


def format_figures(figures: Figures) -> str:
    """Return the scalar figures and the words in one line."""
    formats = {int: ",", float: ".3g", str: ""}
    shown = ((k, v, spec) for k, v in figures.items() for kind, spec in formats.items() if isinstance(v, kind))
    return ", ".join(f"{k} {v:{spec}}" for k, v, spec in shown if v != "")
