"""Recognition of GPT-2: the tensors of GPT-2, and a test whether a model computes the same function.

The test does not look at the classes of the model's parts: it compares tensors by name and shape, and compares
outputs of the stream, the embedding and the norm on random tensors with those of GPT-2.

Source: GPT-2 (Radford et al. 2019), section 2.3.
Shape letters: B batch, T tokens, D n_embd, V vocab_size.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.embedding.base import TokenEmbedding
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.residual.base import build_plain_sites

#: Configuration of a GPT-2, for messages.
GPT2_KEYS = "residual=vanilla, norm=layernorm, embedding=tied"


def gpt2_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of GPT-2's tensors by this project's names, biases included."""
    D = config.n_embd
    block = {
        "ln_1": (D,),
        "attn.c_attn": (3 * D, D),
        "attn.c_proj": (D, D),
        "ln_2": (D,),
        "mlp.c_fc": (4 * D, D),
        "mlp.c_proj": (D, 4 * D),
    }
    stems = {f"h.{i}.{part}": shape for i in range(config.n_layer) for part, shape in block.items()}
    shapes: dict[str, tuple[int, ...]] = {
        "embedding.wte.weight": (config.vocab_size, D),
        "embedding.wpe.weight": (config.block_size, D),
    }
    for stem, shape in {**stems, "ln_f": (D,)}.items():
        shapes |= {f"{stem}.weight": shape, f"{stem}.bias": shape[:1]}
    return shapes


def find_difference_from_gpt2(gpt: GPT) -> str | None:
    """Return the first part in which a model differs from GPT-2, or None if it is GPT-2."""
    own, shapes = gpt.state_dict(), gpt2_shapes(gpt.config)
    for key in (*own, *shapes):
        optional = key.endswith(".bias") and not gpt.config.bias
        if (key not in own and not optional) or (key in own and shapes.get(key) != own[key].shape):
            return key
    if any(gpt.config.windows):
        return f"model.window_pattern={gpt.config.window_pattern}"
    if gpt.config.qk_norm != "none":
        return f"model.qk_norm={gpt.config.qk_norm}"
    if not _is_gelu_mlp(gpt):
        return "its MLP"
    if gpt.config.attention_scale != "inverse_sqrt":
        return f"model.attention_scale={gpt.config.attention_scale}"
    if gpt.config.logit_softcap is not None:
        return f"model.logit_softcap={gpt.config.logit_softcap}"
    for key, scale in (("base_width", gpt.logit_scale), ("base_depth", gpt.branch_scale)):
        if scale != 1:
            return f"model.{key}={getattr(gpt.config, key)}"
    if not is_plain_stream(gpt):
        return "its residual stream"
    if not _is_plain_embedding(gpt.embedding, gpt.config.n_layer):
        return "its embedding"
    return None if _is_layer_norm(gpt.get_submodule("ln_f")) else "its norm"  # all norms are of one kind


@torch.no_grad()
def is_plain_stream(gpt: GPT) -> bool:
    """Return True if in evaluation every site reads, and `end` returns, x0 plus all outputs so far."""
    if gpt.sites != build_plain_sites(gpt.config.n_layer) or gpt.residual.taps_qkv:
        return False
    residual = copy.deepcopy(gpt.residual).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    x_BTD = torch.randn(1, 2, gpt.config.n_embd, generator=generator)
    state = residual.begin(x_BTD)
    for site in gpt.sites:
        read, state = residual.read(state, site)
        if not (isinstance(read, Tensor) and torch.allclose(read, x_BTD)):
            return False
        y_BTD = torch.randn(x_BTD.shape, generator=generator)
        x_BTD = x_BTD + y_BTD
        state = residual.write(state, site, y_BTD)
    return torch.allclose(residual.end(state), x_BTD)


@torch.no_grad()
def _is_plain_embedding(embedding: TokenEmbedding, n_layer: int) -> bool:
    """Return True if in evaluation x0 is the sum of two table rows, the head is tied, and nothing is injected."""
    wte_VD, wpe_TD = (embedding.get_parameter(f"{name}.weight") for name in ("wte", "wpe"))
    idx_BT = torch.zeros(1, 1, dtype=torch.long, device=wte_VD.device)
    mode = embedding.training
    x0_BTD = embedding.eval()(idx_BT)
    embedding.train(mode)
    lookup = embedding.lookup(idx_BT)
    for layer in range(n_layer):
        if embedding.stream_addition(lookup, layer) is not None:
            return False
        if embedding.value_addition(lookup, layer, x0_BTD) is not None:
            return False
    return embedding.get_lm_head_weight() is wte_VD and torch.allclose(x0_BTD, wte_VD[idx_BT] + wpe_TD[:1])


@torch.no_grad()
def _is_gelu_mlp(gpt: GPT) -> bool:
    """Return True if in evaluation the MLP is the output projection of GELU of the input projection."""
    mlp = copy.deepcopy(gpt.h[0].get_submodule("mlp")).cpu().float().eval()
    x_BTD = torch.randn(1, 2, gpt.config.n_embd, generator=torch.Generator().manual_seed(0))
    fc, proj = (
        (mlp.get_parameter(f"{n}.weight"), dict(mlp.named_parameters()).get(f"{n}.bias")) for n in ("c_fc", "c_proj")
    )
    hidden = F.gelu(F.linear(x_BTD, *fc), approximate=gpt.config.gelu_approximate)
    return torch.allclose(mlp(x_BTD), F.linear(hidden, *proj), atol=1e-6)


@torch.no_grad()
def _is_layer_norm(norm: nn.Module) -> bool:
    """Return True if `norm` is LayerNorm with its own weight, bias and eps, on an input small enough to show eps."""
    eps, weight, bias = (getattr(norm, name, None) for name in ("eps", "weight", "bias"))
    if not isinstance(eps, float) or not isinstance(weight, Tensor):
        return False
    x = 1e-2 * torch.randn(2, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight)
    return torch.allclose(norm(x), F.layer_norm(x, x.shape[-1:], weight, bias, eps), atol=1e-6)
