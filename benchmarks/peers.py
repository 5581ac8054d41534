"""Peers: training steps by other code, timed beside ours with `bench.peer=benchmarks.peers:plain`.

A peer is function(spec) -> (model, step) or (model, step, optimizer). `spec` has the sizes (`StepSpec`); step(idx,
targets) takes one whole optimizer step on ids [B, T] and returns its loss. It has to compute what our step computes:
if the model's weights have nanoGPT's names, the losses from equal weights are compared.

`plain` is a Pre-LN GPT-2 as nanoGPT writes it: all logits at once, torch's cross-entropy, AdamW with torch's default
implementation. `hyper_connections` and `manifold_hyper_connections` are that model with the streams of the
hyper-connections package. `attention_residuals_of_fla` is our own model with residual=attnres, mixed by the kernels of
flash-linear-attention. `attnres_plain`, `hyperconn_plain` and `mhc_plain` are our own models without our GPU kernels:
what torch.compile makes of the references.

Source: karpathy/nanoGPT, model.py and train.py; lucidrains/hyper-connections;
fla-org/flash-linear-attention, fla/ops/attnres.
"""

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.bench.step import StepSpec, residual_step
from src.errors import UserError
from src.kernels.dispatch import REGISTRY
from src.residual.attnres import AttentionResiduals
from src.residual.base import ResidualStrategy, Site, StreamSpec
from src.residual.hyperconn import HyperConnections
from src.residual.mhc import ManifoldHyperConnections

Peer = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor], torch.optim.Optimizer]
N_STREAM = 4


class Norm(nn.LayerNorm):
    """Layer norm with an optional bias."""

    def __init__(self, spec: StepSpec) -> None:
        super().__init__(spec.n_embd, eps=1e-5, bias=spec.bias)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, spec: StepSpec) -> None:
        super().__init__()
        self.c_attn = nn.Linear(spec.n_embd, 3 * spec.n_embd, bias=spec.bias)
        self.c_proj = nn.Linear(spec.n_embd, spec.n_embd, bias=spec.bias)
        self.n_head = spec.n_head

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv = self.c_attn(x_BTD).split(D, dim=2)
        q, k, v = (part.view(B, T, self.n_head, -1).transpose(1, 2) for part in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out_BTD: Tensor = self.c_proj(y.transpose(1, 2).contiguous().view(B, T, D))
        return out_BTD


class MLP(nn.Module):
    """Two-layer MLP with GELU, 4 * D wide inside."""

    def __init__(self, spec: StepSpec) -> None:
        super().__init__()
        self.c_fc = nn.Linear(spec.n_embd, 4 * spec.n_embd, bias=spec.bias)
        self.c_proj = nn.Linear(4 * spec.n_embd, spec.n_embd, bias=spec.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.c_proj(F.gelu(self.c_fc(x_BTD)))
        return out_BTD


class Block(nn.Module):
    """Pre-LN attention and MLP branches of a layer."""

    def __init__(self, spec: StepSpec) -> None:
        super().__init__()
        self.ln_1, self.attn = Norm(spec), Attention(spec)
        self.ln_2, self.mlp = Norm(spec), MLP(spec)

    def branches(self) -> list[Callable[[Tensor], Tensor]]:
        """Return attention and MLP, each with its input norm."""
        return [lambda x: self.attn(self.ln_1(x)), lambda x: self.mlp(self.ln_2(x))]


class PlainGPT(nn.Module):
    """nanoGPT's model with its parameter names; `streams(site)` builds the connection around each sublayer.

    Without `streams`, sublayers are connected by the plain residual sum.
    """

    def __init__(self, spec: StepSpec, streams: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        parts = {
            "wte": nn.Embedding(spec.vocab_size, spec.n_embd),
            "wpe": nn.Embedding(spec.block_size, spec.n_embd),
            "h": nn.ModuleList(Block(spec) for _ in range(spec.n_layer)),
            "ln_f": Norm(spec),
        }
        self.transformer = nn.ModuleDict(parts)
        self.lm_head = nn.Linear(spec.n_embd, spec.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]  # tied
        for name, param in self.named_parameters():
            if param.dim() >= 2:
                std = 0.02 / (2 * spec.n_layer) ** 0.5 if name.endswith("c_proj.weight") else 0.02
                nn.init.normal_(param, std=std)
        connections = [] if streams is None else [streams(site) for site in range(2 * spec.n_layer)]
        self.streams = nn.ModuleList(connections)

    def forward(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy of token ids and targets [B, T]."""
        t = self.transformer
        x = t["wte"](idx_BT) + t["wpe"](torch.arange(idx_BT.shape[1], device=idx_BT.device))
        blocks = cast(Iterable[Block], t["h"])
        branches = [branch for block in blocks for branch in block.branches()]
        if not self.streams:
            for branch in branches:
                x = x + branch(x)
        else:
            x = x.repeat_interleave(N_STREAM, dim=0)
            for branch, connection in zip(branches, self.streams, strict=True):
                u, add = connection(x)
                x = add(branch(u))
            x = x.unflatten(0, (-1, N_STREAM)).sum(1)
        logits_BTV = self.lm_head(t["ln_f"](x))
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def plain(spec: StepSpec) -> Peer:
    """Build nanoGPT's step, eager."""
    return build_step(PlainGPT, spec, compiled=False)


def plain_compiled(spec: StepSpec) -> Peer:
    """Build nanoGPT's step with the model compiled."""
    return build_step(PlainGPT, spec, compiled=True)


def hyper_connections(spec: StepSpec) -> Peer:
    """Build the package's dynamic hyper-connections with four streams, eager."""
    return build_step(partial(PlainGPT, streams=_package_streams("HyperConnections", spec)), spec, compiled=False)


def manifold_hyper_connections(spec: StepSpec) -> Peer:
    """Build the package's manifold-constrained hyper-connections with four streams, eager."""
    return build_step(partial(PlainGPT, streams=_package_streams("mHC", spec)), spec, compiled=False)


def _package_streams(name: str, spec: StepSpec) -> Callable[[int], nn.Module]:
    kind = _import_optional("hyper_connections", name, "hyper-connections")
    return lambda site: kind(N_STREAM, dim=spec.n_embd, layer_index=site)


class PackageAttentionResiduals(AttentionResiduals):
    """residual=attnres mixed by `attend(query, sources, rms_weight=, rms_eps=)`; the state is the tuple of sources."""

    def __init__(self, spec: StreamSpec, *, attend: Callable[..., Tensor], eps: float) -> None:
        super().__init__(spec, eps=eps)
        self.attend = attend

    def begin(self, x0_BTD: Tensor) -> Any:  # a tuple of tensors, not the contract's state
        return (x0_BTD,)

    def read(self, state: Any, site: Site) -> tuple[Tensor, Any]:
        return self._mix(state, site.index - 1), state

    def write(self, state: Any, site: Site, y_BTD: Tensor) -> Any:
        return (*state, y_BTD.to(state[0].dtype))

    def end(self, state: Any) -> Tensor:
        return self._mix(state, len(self.query_QD) - 1)

    def _mix(self, sources: tuple[Tensor, ...], query: int) -> Tensor:
        if query < 0:
            return sources[0]
        gain_D = self.key_gain_QD[query]
        return self.attend(self.query_QD[query], sources, rms_weight=gain_D, rms_eps=self.eps)


def attnres_plain(spec: StepSpec) -> Peer:
    """Build residual=attnres without our GPU kernels, compiled on a GPU."""
    return _step_without_kernels(spec, AttentionResiduals, eps=1e-5)


def hyperconn_plain(spec: StepSpec) -> Peer:
    """Build residual=hyperconn without our GPU kernels, compiled on a GPU."""
    keys = {"scale_init": 0.01, "output_init_scale": 1.0, "stream_dtype": "float32"}
    return _step_without_kernels(spec, HyperConnections, n_stream=N_STREAM, **keys)


def mhc_plain(spec: StepSpec) -> Peer:
    """Build residual=mhc without our GPU kernels, compiled on a GPU."""
    keys = {"n_iteration": 20, "scale_init": 0.01, "own_share": 0.7, "res_logit": 8.0, "eps": 1e-6}
    return _step_without_kernels(spec, ManifoldHyperConnections, n_stream=N_STREAM, **keys, stream_dtype="float32")


def _step_without_kernels(
    spec: StepSpec, kind: Callable[..., ResidualStrategy[Any]], **keys: Any
) -> Peer:  # the strategy's own keys
    gpt, step, optimizer = residual_step(spec, partial(kind, **keys))
    if spec.device == "cuda":
        gpt.hidden = torch.compile(gpt.hidden, fullgraph=True, dynamic=False)  # type: ignore[method-assign]  # what the step calls

    def plain_step(idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with REGISTRY.without_residual_kernels():
            return step(idx_BT, targets_BT)

    return gpt, plain_step, optimizer


def attention_residuals_of_fla(spec: StepSpec) -> Peer:
    """Build residual=attnres on the package's fused kernels, one per query, which exist on a GPU only.

    The code between the kernels is compiled.
    """
    fused = _import_optional("fla.ops.attnres", "fused_attnres", "fla-core")
    attend = torch.compiler.disable(fused)  # type: ignore[no-untyped-call]  # torch; it passes data pointers, which cannot be traced
    gpt, step, optimizer = residual_step(spec, partial(PackageAttentionResiduals, attend=attend, eps=1e-6))
    if spec.device == "cuda":
        gpt.hidden = torch.compile(gpt.hidden, dynamic=False)  # type: ignore[method-assign]  # what the step calls
    return gpt, step, optimizer


def _import_optional(module: str, name: str, package: str) -> Any:  # a class or function of an optional package
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise UserError(f"bench.peer: {name} needs {package}; pip install {package}") from error


def build_step(make: Callable[[StepSpec], PlainGPT], spec: StepSpec, *, compiled: bool) -> Peer:
    """Build a model with nanoGPT's optimizer and training step."""
    torch.manual_seed(spec.seed)
    model = make(spec).to(spec.device)
    params = list(model.parameters())
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]
    extra: dict[str, bool] = {"fused": True} if spec.device == "cuda" else {}
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=(0.9, 0.95), **extra)
    forward = torch.compile(model) if compiled else model

    def step(idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        with torch.autocast(spec.device, torch.bfloat16, enabled=spec.dtype == "bfloat16"):
            loss: Tensor = forward(idx_BT, targets_BT)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(params, spec.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return model, step, optimizer
