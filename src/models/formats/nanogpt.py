"""Weights of nanoGPT: its tensors by name, for comparisons with it.

Source: karpathy/nanoGPT, model.py.
"""

from collections.abc import Mapping

from torch import Tensor

from src.models.gpt import GPT


def load_nanogpt(gpt: GPT, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a nanoGPT model with the same sizes (`transformer.wte.weight`, ...)."""
    own = {}
    for key, value in weights.items():
        name = key.removeprefix("transformer.")
        if name != "lm_head.weight":  # tied: the same tensor as wte
            own[f"embedding.{name}" if name.startswith(("wte", "wpe")) else name] = value
    gpt.load_state_dict(own, strict=True)
