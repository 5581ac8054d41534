"""Checks of cost at GPT-2 Medium (parameters, FLOPs, memory kept for the backward) and of magnitudes over depth.

The forward runs on fake tensors of the real sizes, and the bytes that autograd saves are counted as they are packed;
nothing is computed.
"""

import math
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from src.checks.base import Figures, Subject
from src.files import CONF
from src.models.config import GPTConfig
from src.models.flops import count_flops_per_token

GIB = 2**30
#: Weight, gradient and AdamW's two moments in float32; under Muon one moment, and during its step a copy of the weight.
BYTES_PER_PARAM = 16


def read_medium() -> GPTConfig:
    """Return the shipped sizes of GPT-2 Medium."""
    own, common = (OmegaConf.load(CONF / "model" / f"{name}.yaml") for name in ("gpt2_medium", "tiny"))
    sizes: Any = OmegaConf.to_container(OmegaConf.merge(common, own))
    sizes.pop("defaults")
    return GPTConfig(**sizes)


def count_kept_bytes(subject: Subject, config: GPTConfig, batch: int, *, bf16: bool = True) -> tuple[int, int, int]:
    """Count the bytes that the trunk saves for its backward, its parameters, and its FLOPs per token."""
    storages: dict[int, tuple[int, Tensor]] = {}
    with FakeTensorMode():
        gpt = subject.make(config, 0)
        own = {p.untyped_storage()._cdata for p in gpt.parameters()}

        def pack(saved: Tensor) -> Tensor:
            storage = saved.untyped_storage()
            if storage._cdata not in own:  # keep the tensor, so that no other takes its key
                storages[storage._cdata] = (storage.nbytes(), saved)
            return saved

        packing = torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved)
        with packing, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out_BTD = gpt.hidden(torch.zeros(batch, config.block_size, dtype=torch.long))
        total = sum(size for size, _ in storages.values())
        assert out_BTD.requires_grad  # keeps the graph and its saved tensors alive until here
    return total, gpt.n_params(positions=True), count_flops_per_token(gpt)


def check_cost(subject: Subject, medium: GPTConfig, micro_batch_size: int, gpu_gib: float) -> tuple[list[str], Figures]:
    """Check that GPT-2 Medium with the configured micro-batch fits into `gpu_gib`, and return its costs."""
    saved, n_params, flops = count_kept_bytes(subject, medium, micro_batch_size)
    state = n_params * BYTES_PER_PARAM
    need = (saved + state) / GIB
    figures: Figures = {
        "n_params_medium": n_params,
        "flops_per_token_medium": flops,
        "activations_gib_medium": saved / GIB,
        "memory_gib_medium": need,
        "micro_batch_size": micro_batch_size,
    }
    fault = (
        f"at GPT-2 Medium with data.micro_batch_size={micro_batch_size} the trunk keeps {saved / GIB:.0f} GiB for its "
        f"backward, {need:.0f} GiB with weights and optimizer, over gpu_gib={gpu_gib:g}: add sources up in a loop "
        "instead of stacking them, or recompute the mixing (torch.utils.checkpoint)"
    )
    return [fault] if need > gpu_gib else [], figures


def check_depth(subject: Subject, idx_BT: Tensor) -> tuple[list[str], Figures]:
    """Check that the RMS of the sublayers' outputs and of their gradients neither explodes nor vanishes over depth."""
    gpt = subject.build_small(jittered=False)
    x_BTD, trace = gpt.trace(idx_BT)
    outputs = list(trace.y_BTD)
    loss = gpt.head_loss(x_BTD, idx_BT.roll(-1, 1))
    grads = torch.autograd.grad(loss, outputs, allow_unused=True)
    out_rms = [float(y.detach().square().mean().sqrt()) for y in outputs]
    grad_rms = [0.0 if g is None else float(g.square().mean().sqrt()) for g in grads]
    figures: Figures = {"strategy": gpt.residual.describe(), "branch_rms": out_rms, "gradient_rms": grad_rms}
    faults = []
    for name, values in (("outputs", out_rms), ("gradients", grad_rms)):
        alive = [v for v in values if v > 0]
        if not all(map(math.isfinite, values)):
            faults.append(f"the sublayers' {name} are not finite in the first step; look for an overflow over depth")
        elif alive and max(alive) > 1e4 * min(alive):
            faults.append(
                f"the sublayers' {name} differ by {max(alive) / min(alive):.0e} in RMS over depth "
                f"(largest at site {values.index(max(alive))}): the stream explodes or vanishes; normalise or "
                "rescale"
            )
    return faults, figures
