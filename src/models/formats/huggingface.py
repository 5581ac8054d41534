"""Hugging Face GPT-2 folders: write and read the weights of a model that is GPT-2.

Such a model has one stream with Pre-LN, LayerNorm, a tied head and learned positions. Hugging Face stores the
projections of a block transposed (Conv1D), and always stores biases.

Source: Hugging Face transformers, GPT2Config (its defaults replace keys that a config.json omits) and
GPT2LMHeadModel.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.models.config import GPTConfig
from src.models.formats.folder import read_config, read_sizes, read_tensors, write_folder
from src.models.formats.gpt2 import GPT2_KEYS, find_difference_from_gpt2, gpt2_shapes
from src.models.gpt import GPT

#: Sizes: this project's keys, and Hugging Face's.
SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
ACTIVATIONS = {"none": "gelu", "tanh": "gelu_new"}
#: Switches of GPT2Config that change the function, with the only value that this project implements.
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
#: Buffers that folders of older versions of transformers hold besides the weights: the causal mask.
MASKS = (".attn.bias", ".attn.masked_bias")


def write_gpt2(gpt: GPT, folder: Path, end_of_text: int | None = None) -> None:
    """Write `gpt` into an existing folder; `GPT2LMHeadModel.from_pretrained` loads it with the same logits.

    Args:
        gpt: a model that is GPT-2.
        folder: the folder.
        end_of_text: id that starts and ends a text; None where the tokenizer is not known.

    Raises:
        ValueError: the model is not GPT-2.
    """
    difference = find_difference_from_gpt2(gpt)
    if difference is not None:
        raise ValueError(f"Hugging Face's GPT-2 format holds {GPT2_KEYS} only; this model differs in {difference}")
    own = gpt.state_dict()
    weights = {}
    for key, shape in gpt2_shapes(gpt.config).items():
        value = own[key].detach().cpu().float() if key in own else torch.zeros(shape)
        weights[f"transformer.{_hub_name(key)}"] = (value.T if _is_conv1d(key) else value).contiguous()
    write_folder(folder, _hub_config(gpt, end_of_text), weights)


def _hub_config(gpt: GPT, end_of_text: int | None) -> dict[str, Any]:  # JSON
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": ACTIVATIONS[gpt.config.gelu_approximate],
        "layer_norm_epsilon": gpt.get_submodule("ln_f").eps,
        **FIXED,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "resid_pdrop": gpt.config.dropout,
        "embd_pdrop": gpt.config.dropout,
        "attn_pdrop": gpt.config.dropout,
        **{theirs: getattr(gpt.config, ours) for ours, theirs in SIZES.items()},
    }


def read_gpt2(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the fields of a `GPTConfig` and the weights, in this project's names, of a GPT-2 folder.

    `bias` is True if any stored bias differs from zero; only then do the weights include biases. `dropout` is
    `resid_pdrop`. The norm's eps is not a field of `GPTConfig`; `load_gpt2` compares it.

    Raises:
        ValueError: the folder is missing or damaged, or its model is not supported here.
    """
    config = read_config(folder, ("gpt2",))
    fields = _config_fields(config, folder)
    weights = _read_weights(folder, GPTConfig(**fields))
    fields["bias"] = _first_nonzero_bias(weights) is not None
    return fields, {key: value for key, value in weights.items() if fields["bias"] or not key.endswith(".bias")}


def load_gpt2(gpt: GPT, folder: Path) -> None:
    """Load the weights of a GPT-2 folder into `gpt`; both then have the same logits.

    Raises:
        ValueError: the folder is missing or damaged, or differs from `gpt` in sizes or parts; it names all of them.
    """
    require_gpt2(gpt, folder)
    config = read_config(folder, ("gpt2",))
    fields = _config_fields(config, folder)
    weights = _read_weights(folder, GPTConfig(**fields))
    load_matching(gpt, {**fields, "eps": config.get("layer_norm_epsilon", 1e-5)}, weights, folder)


def require_gpt2(gpt: GPT, place: Path) -> None:
    """Reject a model that is not GPT-2.

    Raises:
        ValueError: names the part in which it differs.
    """
    difference = find_difference_from_gpt2(gpt)
    if difference is not None:
        raise ValueError(f"{place} is for {GPT2_KEYS} only; this model differs in {difference}")


def load_matching(gpt: GPT, fields: dict[str, Any], weights: dict[str, Tensor], place: Path) -> None:
    """Load weights in this project's names, biases included, into a model with the same sizes.

    Args:
        fields: those of a `GPTConfig`, and `eps` of the norms.
        place: where they are from, for messages.

    Raises:
        ValueError: sizes differ; it names all of them and the overrides that make them equal.
    """
    ours: dict[str, object] = {f"model.{key}": getattr(gpt.config, key) for key in (*SIZES, "gelu_approximate")}
    ours["norm.eps"] = gpt.get_submodule("ln_f").eps
    theirs = {**{f"model.{key}": value for key, value in fields.items()}, "norm.eps": fields["eps"]}
    different = {key: theirs[key] for key, value in ours.items() if theirs[key] != value}
    found = [f"{key}={value}, this model {ours[key]}" for key, value in different.items()]
    bias = _first_nonzero_bias(weights)
    if bias is not None and not gpt.config.bias:
        different["model.bias"] = "true"
        found.append(f"biases that are not zero ({bias}), this model has none")
    if different:
        overrides = " ".join(f"{key}={value}" for key, value in different.items())
        raise ValueError(f"{place} has {'; '.join(found)}; give {overrides}")
    gpt.load_state_dict({key: weights[key] for key in gpt.state_dict()}, strict=True)


def _config_fields(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of a `GPTConfig` with biases."""
    for key, value in {**FIXED, "n_inner": None}.items():
        found = config.get(key, value)
        if found != value and not (key == "n_inner" and found == 4 * config.get("n_embd", 0)):
            raise ValueError(f"{folder} has {key}={found}, which is not supported here")
    sizes = read_sizes(config, SIZES, folder)
    activation = config.get("activation_function", "gelu_new")
    if activation not in GELUS:
        raise ValueError(
            f"{folder} has activation_function={activation}, which is not supported here; "
            f"supported are {', '.join(GELUS)}"
        )
    return {
        **sizes,
        "bias": True,
        "dropout": config.get("resid_pdrop", 0.1),
        "gelu_approximate": GELUS[activation],
        "norm_placement": "pre",
        "positions": "learned",
    }


def _hub_name(key: str) -> str:
    """Return Hugging Face's name, without the prefix `transformer.` that some folders omit."""
    return key.removeprefix("embedding.")


def _is_conv1d(key: str) -> bool:
    return key.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def _read_weights(folder: Path, config: GPTConfig) -> dict[str, Tensor]:
    """Return all tensors of GPT-2 in this project's names and layout, biases included, in float32."""
    theirs = {key.removeprefix("transformer."): value for key, value in read_tensors(folder).items()}
    head = theirs.pop("lm_head.weight", None)
    weights = {}
    for key, shape in gpt2_shapes(config).items():
        name = _hub_name(key)
        if name not in theirs:
            raise ValueError(f"{folder} has no tensor {name} among its weights")
        value = theirs.pop(name)
        value = (value.T if _is_conv1d(key) else value).float()
        if value.shape != shape:
            raise ValueError(f"{folder} has {key} of shape {list(value.shape)}; by its config.json it is {list(shape)}")
        weights[key] = value.contiguous()
    unknown = [name for name in theirs if not name.endswith(MASKS)]
    if head is not None and not torch.equal(head.float(), weights["embedding.wte.weight"]):
        unknown.append("lm_head.weight, which is not tied")
    if unknown:
        raise ValueError(f"{folder} has a tensor {unknown[0]}, which is not supported here")
    return weights


def _first_nonzero_bias(weights: dict[str, Tensor]) -> str | None:
    return next((key for key, value in weights.items() if key.endswith(".bias") and value.any()), None)
