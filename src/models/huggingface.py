"""Weights to and from Hugging Face's GPT-2 folders (`config.json` and `model.safetensors`).

Only a model that *is* GPT-2 has such a folder: one stream with Pre-LN, LayerNorm, a tied head and learned
positions. Hugging Face keeps the projections transposed (Conv1D), and always with biases.

Source: Hugging Face transformers, GPT2Config and GPT2LMHeadModel.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from src.artefacts import atomic_folder
from src.models.config import GPTConfig
from src.models.gpt import GPT

PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NORMS = ("ln_1", "ln_2")
END_OF_TEXT = 50256
ACTIVATIONS = {"none": "gelu", "tanh": "gelu_new"}
SIZES = {
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
    "block_size": "n_positions",
    "vocab_size": "vocab_size",
}


def export_gpt2(gpt: GPT, folder: Path) -> None:
    """Write `gpt` as a folder that `GPT2LMHeadModel.from_pretrained` loads with the same logits.

    Raises:
        ValueError: the model is not GPT-2, or the folder exists.
    """
    weights = _to_hub(gpt)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output={folder} exists already; name a folder that does not")
    sizes = {theirs: getattr(gpt.config, ours) for ours, theirs in SIZES.items()}
    special = END_OF_TEXT if gpt.config.vocab_size > END_OF_TEXT else None
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": ACTIVATIONS[gpt.config.gelu_approximate],
        "layer_norm_epsilon": _eps(gpt),
        "tie_word_embeddings": True,
        "bos_token_id": special,
        "eos_token_id": special,
        "resid_pdrop": gpt.config.dropout,
        "embd_pdrop": gpt.config.dropout,
        "attn_pdrop": gpt.config.dropout,
        **sizes,
    }
    with atomic_folder(folder) as part:
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        (part / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_gpt2(gpt: GPT, folder: Path) -> None:
    """Give `gpt` the weights of a Hugging Face GPT-2 folder.

    Raises:
        ValueError: no such folder, other sizes, or a part that the other side lacks.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"init_from={folder} has no {name}; give a Hugging Face GPT-2 folder")
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
    except (json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"init_from={folder} cannot be read: {error}") from error
    _require_same_model(gpt.config, config, folder)
    own = _from_hub(gpt, weights, folder)
    gpt.load_state_dict(own, strict=True)


def _require_same_model(ours: GPTConfig, theirs: dict[str, Any], folder: Path) -> None:
    if theirs.get("model_type") != "gpt2":
        raise ValueError(f"init_from={folder} holds a {theirs.get('model_type')} model, not gpt2")
    for own, other in SIZES.items():
        if theirs[other] != getattr(ours, own):
            raise ValueError(
                f"init_from={folder} has model.{own}={theirs[other]}, this model {getattr(ours, own)}; "
                f"give model.{own}={theirs[other]}"
            )
    activation = theirs.get("activation_function", "gelu_new")
    if activation != ACTIVATIONS[ours.gelu_approximate]:
        known = {theirs_is: ours_is for ours_is, theirs_is in ACTIVATIONS.items()}
        way_out = (
            f"give model.gelu_approximate={known[activation]}"
            if activation in known
            else "it has no equal here"
        )
        raise ValueError(f"init_from={folder} has activation_function={activation}; {way_out}")


def _names(gpt: GPT) -> dict[str, str]:
    """Hugging Face's name of each of this model's tensors, biases included."""
    names = {"embedding.wte.weight": "transformer.wte.weight", "embedding.wpe.weight": "transformer.wpe.weight"}
    stems = [f"h.{i}.{part}" for i in range(gpt.config.n_layer) for part in (*NORMS, *PROJECTIONS)]
    for stem in (*stems, "ln_f"):
        for kind in ("weight", "bias"):
            names[f"{stem}.{kind}"] = f"transformer.{stem}.{kind}"
    return names


def _is_projection(name: str) -> bool:
    return name.endswith(tuple(f"{p}.weight" for p in PROJECTIONS))


def _to_hub(gpt: GPT) -> dict[str, Tensor]:
    own = gpt.state_dict()
    names = _names(gpt)
    odd = [key for key in own if key not in names]
    odd += [key for key in names if key.endswith("weight") and key not in own]
    if odd or not _is_plain_stream(gpt) or not _has_layer_norms(gpt):
        raise ValueError(
            "Hugging Face's GPT-2 format holds residual=vanilla, norm=layernorm, embedding=tied only; "
            f"this model differs{f' in {odd[0]}' if odd else ''}"
        )
    weights = {}
    for key, name in names.items():
        if key in own:
            value = own[key].detach().cpu().float()
            weights[name] = (value.T if _is_projection(key) else value).contiguous()
        else:
            width = own[key.replace("bias", "weight")].shape[0]
            weights[name] = torch.zeros(width)
    return weights


@torch.no_grad()
def _is_plain_stream(gpt: GPT) -> bool:
    """Whether every site reads, and the end gives, x0 plus all outputs so far; tried on random tensors."""
    device = next(gpt.parameters()).device
    x_BTD = torch.randn(1, 2, gpt.config.n_embd, device=device)
    state = gpt.residual.begin(x_BTD)
    for site in gpt.sites:
        read, state = gpt.residual.read(state, site)
        if not (isinstance(read, Tensor) and torch.allclose(read, x_BTD)):
            return False
        y_BTD = torch.randn_like(x_BTD)
        x_BTD = x_BTD + y_BTD
        state = gpt.residual.write(state, site, y_BTD)
    return torch.allclose(gpt.residual.end(state), x_BTD)


@torch.no_grad()
def _has_layer_norms(gpt: GPT) -> bool:
    """Whether the final norm is a layer norm; all norms of a model are of one kind."""
    norm = gpt.get_submodule("ln_f")
    weight, bias = (dict(norm.named_parameters()).get(name) for name in ("weight", "bias"))
    x = torch.randn(2, gpt.config.n_embd, device=next(gpt.parameters()).device)
    plain = F.layer_norm(x, x.shape[-1:], weight, bias, _eps(gpt))
    return torch.allclose(norm(x), plain, atol=1e-6)


def _eps(gpt: GPT) -> float:
    return float(getattr(gpt.get_submodule("ln_f"), "eps", 1e-5))


def _from_hub(gpt: GPT, weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    theirs = {key.removeprefix("transformer."): value for key, value in weights.items()}
    expected = gpt.state_dict().keys()
    own = {}
    for key, name in _names(gpt).items():
        value = theirs.get(name.removeprefix("transformer."))
        if key in expected:
            if value is None:
                raise ValueError(f"init_from={folder} has no tensor {name}")
            own[key] = value.T if _is_projection(key) else value
        elif value is not None and value.abs().max() > 0:
            raise ValueError(
                f"init_from={folder} has a bias {name} that this model lacks; give model.bias=true"
            )
    extra = [key for key in expected if key not in own]
    if extra:
        raise ValueError(
            f"init_from={folder} has no weights for {extra[0]}; GPT-2 is residual=vanilla, norm=layernorm, "
            "embedding=tied"
        )
    return own
