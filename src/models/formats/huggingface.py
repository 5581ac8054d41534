"""Weights to and from Hugging Face's GPT-2 folders (`config.json` and `model.safetensors`).

Only a model that *is* GPT-2 has such a folder: one stream with Pre-LN, LayerNorm, a tied head and learned
positions. Hugging Face keeps the blocks' projections transposed (Conv1D), and always with biases.

Source: Hugging Face transformers, GPT2Config (whose defaults stand for keys that a config.json leaves out)
and GPT2LMHeadModel.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.files import atomic_folder
from src.models.config import GPTConfig
from src.models.formats.gpt2 import GPT2_KEYS, gpt2_shapes, other_than_gpt2
from src.models.gpt import GPT

END_OF_TEXT = 50256
#: This project's size keys, and Hugging Face's.
SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}
GELUS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
ACTIVATIONS = {"none": "gelu", "tanh": "gelu_new"}
#: Switches of GPT2Config that change the function, at the only value which has an equal here.
FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
#: What else a folder of an older transformers may hold: the causal mask, as buffers.
MASKS = (".attn.bias", ".attn.masked_bias")


def export_gpt2(gpt: GPT, folder: Path) -> None:
    """Write `gpt` as a folder that `GPT2LMHeadModel.from_pretrained` loads with the same logits.

    Raises:
        ValueError: the model is not GPT-2, or the folder is not empty.
    """
    refuse_full(folder)
    with atomic_folder(folder) as part:
        write_gpt2(gpt, part)


def refuse_full(folder: Path) -> None:
    """Refuse an output folder in which something is.

    Raises:
        ValueError: likewise.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output={folder} exists already; name a folder that does not")


def write_gpt2(gpt: GPT, folder: Path) -> None:
    """Write `gpt` into an existing folder.

    Raises:
        ValueError: the model is not GPT-2.
    """
    other = other_than_gpt2(gpt)
    if other is not None:
        raise ValueError(f"Hugging Face's GPT-2 format holds {GPT2_KEYS} only; this model differs in {other}")
    own = gpt.state_dict()
    weights = {}
    for key, shape in gpt2_shapes(gpt.config).items():
        value = own[key].detach().cpu().float() if key in own else torch.zeros(shape)
        weights[f"transformer.{_hub_name(key)}"] = (value.T if _is_conv1d(key) else value).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone
    text = json.dumps(_hub_config(gpt), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def _hub_config(gpt: GPT) -> dict[str, Any]:  # a config.json
    special = END_OF_TEXT if gpt.config.vocab_size > END_OF_TEXT else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": ACTIVATIONS[gpt.config.gelu_approximate],
        "layer_norm_epsilon": gpt.get_submodule("ln_f").eps,
        **FIXED,
        "bos_token_id": special,
        "eos_token_id": special,
        "resid_pdrop": gpt.config.dropout,
        "embd_pdrop": gpt.config.dropout,
        "attn_pdrop": gpt.config.dropout,
        **{theirs: getattr(gpt.config, ours) for ours, theirs in SIZES.items()},
    }


def read_gpt2(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of a `GPTConfig`, and the weights in this project's names, of a Hugging Face GPT-2 folder.

    `bias` says whether any bias differs from zero; the weights hold biases only then. `dropout` is
    `resid_pdrop`. The norm's eps is no field of a `GPTConfig`; `load_gpt2` compares it.

    Raises:
        ValueError: no such folder, or a model that has no equal here.
    """
    config = read_config(folder, ("gpt2",))
    fields = _fields(config, folder)
    weights = _read_weights(folder, GPTConfig(**fields))
    fields["bias"] = _set_bias(weights) is not None
    kept = {key: value for key, value in weights.items() if fields["bias"] or not key.endswith(".bias")}
    return fields, kept


def load_gpt2(gpt: GPT, folder: Path) -> None:
    """Give `gpt` the weights of a Hugging Face GPT-2 folder, after which both have the same logits.

    Raises:
        ValueError: no such folder, other sizes, or a part that the other side lacks.
    """
    other = other_than_gpt2(gpt)
    if other is not None:
        raise ValueError(f"init_from={folder} is for {GPT2_KEYS} only; this model differs in {other}")
    config = read_config(folder, ("gpt2",))
    fields = _fields(config, folder)
    ours: dict[str, object] = {f"model.{key}": getattr(gpt.config, key) for key in (*SIZES, "gelu_approximate")}
    ours["norm.eps"] = gpt.get_submodule("ln_f").eps
    theirs = {f"model.{key}": value for key, value in fields.items()}
    theirs["norm.eps"] = config.get("layer_norm_epsilon", 1e-5)
    for key, value in ours.items():
        if theirs[key] != value:
            raise ValueError(
                f"init_from={folder} has {key}={theirs[key]}, this model {value}; give {key}={theirs[key]}"
            )
    weights = _read_weights(folder, gpt.config)
    bias = _set_bias(weights)
    if bias is not None and not gpt.config.bias:
        raise ValueError(
            f"init_from={folder} has biases that are not zero ({bias}), this model has none; "
            "give model.bias=true"
        )
    gpt.load_state_dict({key: weights[key] for key in gpt.state_dict()}, strict=True)


def read_config(folder: Path, kinds: tuple[str, ...]) -> dict[str, Any]:  # a config.json
    """The config.json of a folder that holds a model of one of `kinds`.

    Raises:
        ValueError: no such folder, or another kind of model.
    """
    if not folder.is_dir():
        raise ValueError(f"init_from={folder} is not a folder; give a Hugging Face GPT-2 folder")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"init_from={folder} has no {name}; give a Hugging Face GPT-2 folder with one")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON, or of UTF-8
        raise ValueError(f"init_from={folder} has a config.json that cannot be read: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in kinds:
        names = " or ".join(kinds)
        raise ValueError(f"init_from={folder} holds a model of type {kind}; only {names} can be taken over")
    return dict(config)


def _fields(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A GPTConfig's fields, biases taken for granted."""
    for key, value in {**FIXED, "n_inner": None}.items():
        given = config.get(key, value)
        if given != value and not (key == "n_inner" and given == 4 * config.get("n_embd", 0)):
            raise ValueError(f"init_from={folder} has {key}={given}, which has no equal here")
    fields: dict[str, Any] = {}
    for ours, theirs in SIZES.items():
        size = config.get(theirs)
        if not isinstance(size, int) or size < 1:
            raise ValueError(
                f"init_from={folder} has {theirs}={size} in its config.json, which must be at least 1"
            )
        fields[ours] = size
    activation = config.get("activation_function", "gelu_new")
    if activation not in GELUS:
        raise ValueError(
            f"init_from={folder} has activation_function={activation}, which has no equal here; "
            f"there are {', '.join(GELUS)}"
        )
    return {
        **fields,
        "bias": True,
        "dropout": config.get("resid_pdrop", 0.1),
        "gelu_approximate": GELUS[activation],
        "norm_placement": "pre",
        "positions": "learned",
    }


def _hub_name(key: str) -> str:
    """Hugging Face's name, without the `transformer.` that some folders leave out."""
    return key.removeprefix("embedding.")


def _is_conv1d(key: str) -> bool:
    return key.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))


def _read_weights(folder: Path, config: GPTConfig) -> dict[str, Tensor]:
    """All of GPT-2's tensors in this project's names and layout, biases included, in float32."""
    try:
        stored = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"init_from={folder} has a model.safetensors that cannot be read: {error}") from error
    theirs = {key.removeprefix("transformer."): value for key, value in stored.items()}
    head = theirs.pop("lm_head.weight", None)
    weights = {}
    for key, shape in gpt2_shapes(config).items():
        name = _hub_name(key)
        if name not in theirs:
            raise ValueError(f"init_from={folder} has no tensor {name} in its model.safetensors")
        value = theirs.pop(name)
        value = (value.T if _is_conv1d(key) else value).float()
        if value.shape != shape:
            raise ValueError(
                f"init_from={folder} has {key} of shape {list(value.shape)}; by its config.json it is {list(shape)}"
            )
        weights[key] = value.contiguous()
    odd = [name for name in theirs if not name.endswith(MASKS)]
    if head is not None and not torch.equal(head.float(), weights["embedding.wte.weight"]):
        odd.append("lm_head.weight, which is not tied")
    if odd:
        raise ValueError(f"init_from={folder} has a tensor {odd[0]}, which has no equal here")
    return weights


def _set_bias(weights: dict[str, Tensor]) -> str | None:
    """The first bias that is not zero throughout."""
    return next((key for key, value in weights.items() if key.endswith(".bias") and value.any()), None)
