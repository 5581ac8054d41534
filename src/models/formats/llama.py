"""Hugging Face Llama folders: write and read the weights of a model that is a Llama.

Such a model has one stream with Pre-LN, RMSNorm, SwiGLU, rotations, no biases and no learned positions; its head may be
tied, and its queries grouped.

Source: Hugging Face transformers, LlamaConfig and LlamaForCausalLM.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.models.attention import CausalSelfAttention
from src.models.formats.folder import read_config, read_tensors, write_folder
from src.models.formats.gpt2 import is_plain_stream
from src.models.gpt import GPT

#: Configuration of a Llama, for messages.
LLAMA_KEYS = "model=llama_small with residual=vanilla"
#: Names of a layer's tensors, ours and theirs; the projections of attention are split.
LAYER = {
    "ln_1.weight": "input_layernorm.weight",
    "attn.c_proj.weight": "self_attn.o_proj.weight",
    "ln_2.weight": "post_attention_layernorm.weight",
    "mlp.c_gate.weight": "mlp.gate_proj.weight",
    "mlp.c_fc.weight": "mlp.up_proj.weight",
    "mlp.c_proj.weight": "mlp.down_proj.weight",
}
ENDS = {
    "embedding.wte.weight": "model.embed_tokens.weight",
    "embedding.lm_head.weight": "lm_head.weight",
    "ln_f.weight": "model.norm.weight",
}
VIEWS = ("q_proj", "k_proj", "v_proj")
#: Keys of LlamaConfig that change the function, with the only values that are read.
FIXED = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}


def find_difference_from_llama(gpt: GPT) -> str | None:
    """Return the first part in which a model differs from a Llama, or None if it is one."""
    config = gpt.config
    wanted = {"positions": "rope", "norm_placement": "pre", "qk_norm": "none", "attention_scale": "inverse_sqrt"}
    for key, value in {**wanted, "bias": False, "rope_scale": 1.0, "logit_softcap": None}.items():
        if getattr(config, key) != value:
            return f"model.{key}={getattr(config, key)}"
    if any(config.windows):
        return f"model.window_pattern={config.window_pattern}"
    if gpt.logit_scale != 1 or gpt.branch_scale != 1:
        return "its transfer rule"
    names = {f"h.{i}.{name}" for i in range(config.n_layer) for name in (*LAYER, "attn.c_attn.weight")}
    names |= {f"h.{i}.attn.c_kv.weight" for i in range(config.n_layer) if config.n_kv < config.n_head}
    for name in set(gpt.state_dict()) ^ (names | set(ENDS)):
        if name != "embedding.lm_head.weight":
            return name
    if not is_plain_stream(gpt):
        return "its residual stream"
    return None if _is_rms_norm(gpt.get_submodule("ln_f")) else "its norm"  # all norms are of one kind


@torch.no_grad()
def _is_rms_norm(norm: nn.Module) -> bool:
    eps, weight = getattr(norm, "eps", None), norm.get_parameter("weight")
    if not isinstance(eps, float):
        return False
    x = 1e-2 * torch.linspace(-1, 2, 2 * len(weight)).view(2, -1).to(weight)  # small enough to show eps
    return torch.allclose(norm(x), F.rms_norm(x, weight.shape, weight, eps), atol=1e-6)


def write_llama(gpt: GPT, folder: Path) -> None:
    """Write `gpt` into an existing folder; `LlamaForCausalLM.from_pretrained` loads it with the same logits.

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
        **_sizes(gpt),
        **FIXED,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    write_folder(folder, config, {key: v.detach().cpu().float().clone().contiguous() for key, v in weights.items()})


def load_llama(gpt: GPT, folder: Path) -> None:
    """Load the weights of a Llama folder into `gpt`; both then have the same logits.

    Raises:
        ValueError: the folder is missing or damaged, or differs from `gpt` in a size or a part.
    """
    difference = find_difference_from_llama(gpt)
    if difference is not None:
        raise ValueError(f"{folder} is for {LLAMA_KEYS} only; this model differs in {difference}")
    config = read_config(folder, ("llama",))
    theirs = {"rope_parameters": None, "num_key_value_heads": config.get("num_attention_heads"), **FIXED, **config}
    rope = theirs["rope_parameters"] or {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    for key, value in {**_sizes(gpt), **FIXED}.items():
        found = {"rope_type": "default", **rope} if key == "rope_parameters" else theirs.get(key)
        if found != value:
            raise ValueError(
                f"{folder} has {key}={found} in its config.json, this model {value}; give it the same sizes"
            )
    _copy_weights(gpt, read_tensors(folder), folder)


@torch.no_grad()
def _copy_weights(gpt: GPT, tensors: dict[str, Tensor], folder: Path) -> None:
    own = dict(gpt.named_parameters())
    places: dict[str, Tensor] = {theirs: own[ours] for ours, theirs in ENDS.items() if ours in own}
    for i in range(gpt.config.n_layer):
        places |= {f"model.layers.{i}.{theirs}": own[f"h.{i}.{ours}"] for ours, theirs in LAYER.items()}
        places |= {f"model.layers.{i}.self_attn.{name}.weight": view for name, view in _views(gpt, i).items()}
    for name in (*places, *tensors):
        here, there = (list(tree[name].shape) if name in tree else None for tree in (places, tensors))
        if here != there and not (name == "lm_head.weight" and here is None):  # tied, and stored twice
            raise ValueError(f"{folder} has {name} of shape {there} in its model.safetensors, this model {here}")
    for name, place in places.items():
        place.copy_(tensors[name])


def _views(gpt: GPT, layer: int) -> dict[str, Tensor]:
    attention = gpt.h[layer].get_submodule("attn")
    assert isinstance(attention, CausalSelfAttention)  # the trunk's
    return {name: weight for name, (weight, _) in zip(VIEWS, attention.split_projections(), strict=True)}


def _sizes(gpt: GPT) -> dict[str, Any]:
    config = gpt.config
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.n_embd,
        "intermediate_size": gpt.get_parameter("h.0.mlp.c_fc.weight").shape[0],
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv,
        "max_position_embeddings": config.block_size,
        "rms_norm_eps": gpt.get_submodule("ln_f").eps,
        "tie_word_embeddings": gpt.embedding.get_lm_head_weight() is gpt.get_parameter("embedding.wte.weight"),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
    }
