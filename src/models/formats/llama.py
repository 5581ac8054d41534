"""Recognition of a Llama: its tensors by name, and a test whether a model computes the same function.

A Llama has one stream with Pre-LN, RMSNorm, SwiGLU, rotations, no biases and no learned positions; its head may be tied,
and its queries grouped. As for GPT-2 (`gpt2.py`), outputs of the parts are compared, not their classes.

Source: Touvron et al., "Llama" (arXiv 2302.13971), section 2.2; Hugging Face transformers, LlamaForCausalLM.
"""

import torch
from torch import nn
from torch.nn import functional as F

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


def find_difference_from_llama(gpt: GPT) -> str | None:
    """Return the first part in which a model differs from a Llama, or None if it is one."""
    config = gpt.config
    wanted: dict[str, object] = {"positions": "rope", "norm_placement": "pre", "qk_norm": "none"}
    wanted |= {"attention_scale": "inverse_sqrt", "bias": False, "logit_softcap": None}
    for key, value in wanted.items():
        if getattr(config, key) != value:
            return f"model.{key}={getattr(config, key)}"
    if any(config.windows):
        return f"model.window_pattern={config.window_pattern}"
    if gpt.logit_scale != 1 or gpt.branch_scale != 1:
        return "its transfer rule"
    names = {f"h.{i}.{name}" for i in range(config.n_layer) for name in (*LAYER, "attn.c_attn.weight")}
    names |= {f"h.{i}.attn.c_kv.weight" for i in range(config.n_layer) if config.n_kv < config.n_head}
    for name in sorted(set(gpt.state_dict()) ^ (names | set(ENDS))):
        if name != "embedding.lm_head.weight":
            return name
    if not is_plain_stream(gpt):
        return "its residual stream"
    if not _is_lookup(gpt):
        return "its embedding"
    if not _is_swiglu(gpt):
        return "its MLP"
    return None if _is_rms_norm(gpt.get_submodule("ln_f")) else "its norm"  # all norms are of one kind


@torch.no_grad()
def _is_lookup(gpt: GPT) -> bool:
    """Return True if in evaluation x0 is a row of the token table, and no layer gets an addition."""
    embedding, wte_VD = gpt.embedding, gpt.get_parameter("embedding.wte.weight")
    idx_BT = torch.zeros(1, 1, dtype=torch.long, device=wte_VD.device)
    mode = embedding.training
    x0_BTD, lookup = embedding.eval()(idx_BT), embedding.lookup(idx_BT)
    embedding.train(mode)
    for layer in range(gpt.config.n_layer):
        if embedding.stream_addition(lookup, layer) is not None:
            return False
        if embedding.value_addition(lookup, layer, x0_BTD) is not None:
            return False
    return torch.allclose(x0_BTD, wte_VD[idx_BT])


@torch.no_grad()
def _is_swiglu(gpt: GPT) -> bool:
    """Return True if in evaluation the MLP is the output projection of the gated hidden units."""
    mlp = gpt.h[0].get_submodule("mlp")
    gate, fc, proj = (mlp.get_parameter(f"{name}.weight") for name in ("c_gate", "c_fc", "c_proj"))
    x_BTD = torch.randn(1, 2, gpt.config.n_embd, generator=torch.Generator().manual_seed(0)).to(fc)
    mode = mlp.training
    y_BTD = mlp.eval()(x_BTD)
    mlp.train(mode)
    return torch.allclose(y_BTD, F.linear(F.silu(F.linear(x_BTD, gate)) * F.linear(x_BTD, fc), proj), atol=1e-6)


@torch.no_grad()
def _is_rms_norm(norm: nn.Module) -> bool:
    eps, weight = getattr(norm, "eps", None), norm.get_parameter("weight")
    if not isinstance(eps, float):
        return False
    x = 1e-2 * torch.linspace(-1, 2, 2 * len(weight)).view(2, -1).to(weight)  # small enough to show eps
    return torch.allclose(norm(x), F.rms_norm(x, weight.shape, weight, eps), atol=1e-6)
