"""Weights of nanoGPT: its tensors by name, and the checkpoint `ckpt.pt` that its train.py writes.

Source: karpathy/nanoGPT, model.py (GPTConfig; LayerNorm with eps 1e-5, the exact GELU) and train.py (the keys `model`
and `model_args` of a checkpoint; names of a compiled model have the prefix `_orig_mod.`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.models.config import GPTConfig
from src.models.formats.folder import load_pickle
from src.models.formats.gpt2 import gpt2_shapes
from src.models.gpt import GPT

CHECKPOINT = "ckpt.pt"
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
#: Buffer of the causal mask, where torch has no fused attention.
MASK = ".attn.bias"


def find_checkpoint(place: Path) -> Path | None:
    """Return nanoGPT's checkpoint that a file, or the folder of a training, is; None if it is neither."""
    if place.is_file():
        return place
    return place / CHECKPOINT if (place / CHECKPOINT).is_file() and not (place / "config.json").exists() else None


def read_nanogpt(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the fields of a `GPTConfig`, with `eps`, and the weights in this project's names, biases included.

    Raises:
        ValueError: the file is damaged, or not a checkpoint of nanoGPT.
    """
    try:
        stored = load_pickle(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of nanoGPT: {error}") from error
    sizes = stored.get("model_args") if isinstance(stored, dict) else None
    if not isinstance(sizes, dict) or "model" not in stored or not all(isinstance(sizes.get(k), int) for k in SIZES):
        raise ValueError(
            f"{path} is not a checkpoint of nanoGPT (it has no model_args with {', '.join(SIZES)}); "
            "a run of this project continues by resume=<run folder> or branch_from=<run folder>, and its weights are "
            "read from what task=export writes"
        )
    fields = {
        **{key: sizes[key] for key in SIZES},
        "bias": bool(sizes.get("bias", True)),
        "dropout": float(sizes.get("dropout", 0.0)),
        "gelu_approximate": "none",
        "norm_placement": "pre",
        "positions": "learned",
        "eps": 1e-5,
    }
    shapes = gpt2_shapes(GPTConfig(**{key: value for key, value in fields.items() if key != "eps"}))
    theirs = {key.removeprefix("_orig_mod."): value for key, value in stored["model"].items()}
    weights = rename_tensors({key: value for key, value in theirs.items() if not key.endswith(MASK)})
    for key, shape in shapes.items():
        if key not in weights and key.endswith(".bias"):
            weights[key] = torch.zeros(shape)
        if key not in weights or weights[key].shape != shape:
            found = list(weights[key].shape) if key in weights else "missing"
            raise ValueError(f"{path} has {key} of shape {found}; by its model_args it is {list(shape)}")
    return fields, {key: value.float() for key, value in weights.items()}


def load_nanogpt(gpt: GPT, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a nanoGPT model with the same sizes (`transformer.wte.weight`, ...)."""
    gpt.load_state_dict(rename_tensors(weights), strict=True)


def rename_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a nanoGPT model in this project's names."""
    own = {}
    for key, value in weights.items():
        name = key.removeprefix("transformer.")
        if name != "lm_head.weight":  # tied: the same tensor as wte
            own[f"embedding.{name}" if name.startswith(("wte", "wpe")) else name] = value
    return own
