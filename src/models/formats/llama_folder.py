"""Hugging Face Llama folders: write and read the weights of a model that is a Llama (`llama.py`).

Source: Hugging Face transformers, LlamaConfig (its defaults replace keys that a config.json omits), LlamaForCausalLM and
modeling_rope_utils.py.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from src.models.attention import CausalSelfAttention
from src.models.config import GPTConfig
from src.models.formats.folder import read_config, read_sizes, read_tensors, write_folder
from src.models.formats.llama import ENDS, LAYER, LLAMA_KEYS, find_difference_from_llama
from src.models.gpt import GPT

VIEWS = ("q_proj", "k_proj", "v_proj")
#: Buffers that folders of older versions of transformers hold besides the weights.
FREQUENCIES = ".rotary_emb.inv_freq"
#: Sizes: this project's keys, and Hugging Face's.
SIZES = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "block_size": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
#: Keys of LlamaConfig that change the function, with the only value that is read; it is also what a missing key means.
FIXED = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}
#: Fields of a `GPTConfig` that are the same for every Llama; dropout and GELU do not change what it computes.
OTHERS = {"bias": False, "dropout": 0.0, "gelu_approximate": "none", "norm_placement": "pre", "positions": "rope"}
#: Parameters of llama3's rotations: this project's keys, and Hugging Face's.
ROPE_LLAMA3 = {
    "rope_original": "original_max_position_embeddings",
    "rope_low_turns": "low_freq_factor",
    "rope_high_turns": "high_freq_factor",
}


def write_llama(gpt: GPT, folder: Path, end_of_text: int | None = None) -> None:
    """Write `gpt` into an existing folder; `LlamaForCausalLM.from_pretrained` loads it with the same logits.

    Args:
        gpt: a model that is a Llama.
        folder: the folder.
        end_of_text: id that starts and ends a text; None where the tokenizer is not known.

    Raises:
        ValueError: the model is not a Llama.
    """
    difference = find_difference_from_llama(gpt)
    if difference is not None:
        raise ValueError(f"Hugging Face's Llama format holds {LLAMA_KEYS} only; this model differs in {difference}")
    own = {**gpt.state_dict(), **dict(gpt.named_parameters())}
    weights = {theirs: own[ours] for ours, theirs in ENDS.items() if ours in own}
    for i in range(gpt.config.n_layer):
        weights |= {f"model.layers.{i}.{theirs}": own[f"h.{i}.{ours}"] for ours, theirs in LAYER.items()}
        weights |= {f"model.layers.{i}.self_attn.{name}.weight": view for name, view in _views(gpt, i).items()}
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{theirs: getattr(gpt.config, ours) for ours, theirs in SIZES.items()},
        "intermediate_size": gpt.get_parameter("h.0.mlp.c_fc.weight").shape[0],
        "num_key_value_heads": gpt.config.n_kv,
        "rms_norm_eps": gpt.get_submodule("ln_f").eps,
        "tie_word_embeddings": _is_tied(gpt),
        "rope_parameters": _write_rope(gpt.config),
        **FIXED,
        "attention_dropout": 0.0,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": "float32",
    }
    write_folder(folder, config, {key: v.detach().cpu().float().clone().contiguous() for key, v in weights.items()})


def _views(gpt: GPT, layer: int) -> dict[str, Tensor]:
    attention = gpt.h[layer].get_submodule("attn")
    assert isinstance(attention, CausalSelfAttention)  # the trunk's
    return {name: weight for name, (weight, _) in zip(VIEWS, attention.split_projections(), strict=True)}


def _is_tied(gpt: GPT) -> bool:
    return gpt.embedding.get_lm_head_weight() is gpt.get_parameter("embedding.wte.weight")


def _write_rope(config: GPTConfig) -> dict[str, Any]:
    if config.rope_scaling == "linear" and config.rope_scale == 1:
        return {"rope_type": "default", "rope_theta": config.rope_base}
    own = {"rope_type": config.rope_scaling, "rope_theta": config.rope_base, "factor": config.rope_scale}
    if config.rope_scaling == "llama3":
        own |= {theirs: getattr(config, ours) for ours, theirs in ROPE_LLAMA3.items()}
    return own


def read_llama(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Return the fields of a `GPTConfig`, the parts as in a `Recipe`, and the weights in this project's names.

    Raises:
        ValueError: the folder is missing or damaged, or its model is not supported here; it names all reasons.
    """
    config = read_config(folder, ("llama",))
    fields, unsupported = _read_fields(config, folder)
    if unsupported:
        raise ValueError(f"{folder} has {', '.join(unsupported)} in its config.json, which is not supported here")
    is_tied = bool(config.get("tie_word_embeddings", False))
    embedding = "tied.TiedEmbedding" if is_tied else "untied.UntiedEmbedding"
    n_hidden = config.get("intermediate_size", 11008)
    rooms: dict[str, dict[str, Any]] = {
        "residual": {"_target_": "src.residual.vanilla.Vanilla"},
        "norm": {"_target_": "src.norm.rmsnorm.RMSNorm", "eps": float(config.get("rms_norm_eps", 1e-6))},
        "embedding": {"_target_": f"src.embedding.{embedding}"},
        "recurrence": {"_target_": "src.recurrence.none.NoRecurrence"},
        "mlp": {"_target_": "src.models.mlp.swiglu.SwiGLU", "n_hidden": n_hidden, "multiple_of": 1},
    }
    weights = _read_weights(folder, GPTConfig(**fields), n_hidden, is_tied=is_tied)
    return fields, rooms, weights


def load_llama(gpt: GPT, folder: Path) -> None:
    """Load the weights of a Llama folder into `gpt`; both then have the same logits.

    Raises:
        ValueError: the folder is missing or damaged, or differs from `gpt` in sizes or parts; it names all of them.
    """
    difference = find_difference_from_llama(gpt)
    if difference is not None:
        raise ValueError(f"{folder} is for {LLAMA_KEYS} only; this model differs in {difference}")
    fields, rooms, weights = read_llama(folder)
    ours, theirs = (_list_sizes(config, fields) for config in (gpt.config, GPTConfig(**fields)))
    ours["norm.eps"], theirs["norm.eps"] = gpt.get_submodule("ln_f").eps, rooms["norm"]["eps"]
    ours["mlp.n_hidden"] = gpt.get_parameter("h.0.mlp.c_fc.weight").shape[0]
    theirs["mlp.n_hidden"] = rooms["mlp"]["n_hidden"]
    ours["embedding"] = "tied" if _is_tied(gpt) else "untied"
    theirs["embedding"] = str(rooms["embedding"]["_target_"]).split(".")[2]
    different = [key for key, value in ours.items() if theirs[key] != value]
    if different:
        found = "; ".join(f"{key}={theirs[key]}, this model {ours[key]}" for key in different)
        overrides = " ".join(f"{key}={theirs[key]}" for key in different)
        raise ValueError(f"{folder} has {found}; give {overrides}")
    gpt.load_state_dict(weights, strict=True)


def _list_sizes(config: GPTConfig, fields: Iterable[str]) -> dict[str, object]:
    """Return the values of fields that a Llama may have one way or another, by their keys."""
    names = [name for name in fields if name not in (*OTHERS, "n_kv_head")]
    return {**{f"model.{name}": getattr(config, name) for name in names}, "model.n_kv_head": config.n_kv}


def _read_fields(config: dict[str, Any], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a `GPTConfig`, and what they cannot state."""
    unsupported = [f"{key}={config[key]}" for key, value in FIXED.items() if config.get(key, value) != value]
    fields: dict[str, Any] = read_sizes(config, SIZES, folder)
    n_kv, head_size = config.get("num_key_value_heads") or fields["n_head"], fields["n_embd"] // fields["n_head"]
    if config.get("head_dim") not in (None, head_size):
        unsupported.append(f"head_dim={config['head_dim']} (hidden_size / num_attention_heads is {head_size})")
    # transformers 5 has all of the rotations in one key; before, the base stood alone, and the type was `type`.
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    fields |= {"rope_base": float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)}
    fields |= {"rope_scaling": "linear", "rope_scale": 1.0}
    if kind in ("linear", "llama3"):
        fields |= {"rope_scaling": kind, "rope_scale": float(rope.get("factor", 1.0))}
    elif kind != "default":
        unsupported.append(f"rope_type={kind}")
    if kind == "llama3":
        own = {ours: rope[theirs] for ours, theirs in ROPE_LLAMA3.items() if theirs in rope}
        fields |= {"rope_original": fields["block_size"], **own}
    if rope.get("partial_rotary_factor", 1.0) != 1:
        unsupported.append(f"partial_rotary_factor={rope['partial_rotary_factor']}")
    return {**fields, **OTHERS, "n_kv_head": None if n_kv == fields["n_head"] else n_kv}, unsupported


def _read_weights(folder: Path, config: GPTConfig, n_hidden: int, *, is_tied: bool) -> dict[str, Tensor]:
    """Return all tensors in this project's names, in float32."""
    theirs = {key: x for key, x in read_tensors(folder).items() if not key.endswith(FREQUENCIES)}
    if is_tied and "lm_head.weight" in theirs:  # stored twice
        head = theirs.pop("lm_head.weight")
        if not torch.equal(head, theirs.get("model.embed_tokens.weight", head)):
            raise ValueError(f"{folder} has a lm_head.weight that is not tied; by its config.json it is")
    D, G = config.n_embd, config.n_kv * config.head_size
    shapes = {"lm_head": (config.vocab_size, D), "embed_tokens": (config.vocab_size, D), "down_proj": (D, n_hidden)}
    shapes |= {"gate_proj": (n_hidden, D), "up_proj": (n_hidden, D)}
    shapes |= {"q_proj": (D, D), "k_proj": (G, D), "v_proj": (G, D), "o_proj": (D, D)}

    def take(name: str) -> Tensor:
        if name not in theirs:
            raise ValueError(f"{folder} has no tensor {name} among its weights")
        value, shape = theirs.pop(name).float(), shapes.get(name.split(".")[-2], (D,))
        if value.shape != shape:
            raise ValueError(
                f"{folder} has {name} of shape {list(value.shape)}; by its config.json it is {list(shape)}"
            )
        return value

    weights = {ours: take(name) for ours, name in ENDS.items() if not (is_tied and name == "lm_head.weight")}
    for i in range(config.n_layer):
        weights |= {f"h.{i}.{ours}": take(f"model.layers.{i}.{name}") for ours, name in LAYER.items()}
        q, k, v = (take(f"model.layers.{i}.self_attn.{name}.weight") for name in VIEWS)
        if config.n_kv == config.n_head:
            weights[f"h.{i}.attn.c_attn.weight"] = torch.cat((q, k, v))
        else:
            weights |= {f"h.{i}.attn.c_attn.weight": q, f"h.{i}.attn.c_kv.weight": torch.cat((k, v))}
    if theirs:
        raise ValueError(f"{folder} has a tensor {min(theirs)}, which is not supported here")
    return weights
