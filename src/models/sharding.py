"""FSDP2: weights, gradients and moments of a GPT divided among the ranks.

    unit            attention and MLP of every block, each by itself; the root holds the rest: embedding, head, norms and
                    the strategy's packed parameters
    forward         gathers a unit's weights when the sublayer is visited and frees them after it; the root's stay whole
    backward        gathers them again, divides the sum of their gradients among the ranks
    bf16-mixed      units gather bf16 copies of their float32 shards; gradients are reduced in float32

A unit is a sublayer and not a block, because the trunk visits attention and MLP one by one: a block would be gathered
twice a pass. Norms and the strategy's parameters are gathered in float32, since the stream is computed in float32; the
trunk's autocast casts the input of a unit, after its norm, as it does without sharding.

Source: torch.distributed.fsdp.fully_shard; Zhao et al., "PyTorch FSDP" (arXiv 2304.11277); Rajbhandari et al., "ZeRO"
(arXiv 1910.02054), section 5.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from src.models.gpt import GPT

#: Method of GPT that all forwards share; the root's weights are whole from its start to the end of the backward.
ENTRY = "run_trunk"


def build_mesh(device_type: str, *, n_replica: int, n_shard: int) -> DeviceMesh:
    """Return the mesh of `n_replica` groups of consecutive ranks that each share the weights among `n_shard`."""
    if n_replica == 1:
        return init_device_mesh(device_type, (n_shard,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (n_replica, n_shard), mesh_dim_names=("replicate", "shard"))


def shard_gpt(gpt: GPT, mesh: DeviceMesh, *, bf16: bool) -> None:
    """Replace the parameters of `gpt` by this rank's shards, on the mesh's device.

    Args:
        gpt: the whole model, the same on every rank.
        mesh: of `build_mesh`.
        bf16: gather attention and MLP in bf16.

    Raises:
        ValueError: a parameter has no axis to shard.
    """
    for name, param in gpt.named_parameters():
        if param.dim() == 0:
            raise ValueError(
                f"trainer.strategy=fsdp shards the first axis of every parameter, and {name} of "
                f"{type(gpt.residual).__name__} is a scalar; use trainer.strategy=ddp"
            )
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in gpt.h:
        for name in ("attn", "mlp"):
            if hasattr(block, name):  # a layer may have no attention
                unit = block.get_submodule(name)
                unit.register_forward_hook(_copy_view)
                fully_shard(unit, mesh=mesh, mp_policy=policy)
    fully_shard(gpt, mesh=mesh)
    run_trunk = gpt.run_trunk
    setattr(gpt, ENTRY, lambda *args: _copy_view(gpt, args, run_trunk(*args)))
    register_fsdp_forward_method(gpt, ENTRY)


def _copy_view(unit: nn.Module, args: object, x_BTD: Tensor) -> Tensor:
    """Return an output that is not a view: an operation in place on one would remove the hook of the unit's backward."""
    return x_BTD.clone() if x_BTD._is_view() else x_BTD


@contextlib.contextmanager
def gather_root(gpt: nn.Module) -> Iterator[None]:
    """Make all parameters outside attention and MLP whole within the context; a collective operation if sharded."""
    if not isinstance(gpt, FSDPModule):
        yield
        return
    gpt.unshard()
    try:
        yield
    finally:
        gpt.reshard()


def free_gathered(module: nn.Module) -> None:
    """Free what a forward without a backward left whole, so that `parameters()` are shards again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Return True if every rank must take part in a forward of `module`."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def divide_forwards(module: nn.Module) -> tuple[int, int]:
    """Return (rank, ranks) for a loop whose forwards the ranks share; every rank runs all of them if it is sharded."""
    if not distributed.is_initialized() or is_sharded(module):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def count_shards(module: nn.Module) -> int:
    """Return the number of ranks among which the parameters are divided; rank r holds the shard r modulo this number."""
    mesh = next((p.device_mesh for p in module.parameters() if isinstance(p, DTensor)), None)
    return 1 if mesh is None else mesh.size(mesh.ndim - 1)


def gather(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor; a collective operation if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which shares its memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(whole: Tensor, sharded: Tensor) -> Tensor:
    """Return `whole`, which every rank holds, divided like `sharded`."""
    if not isinstance(sharded, DTensor):
        return whole
    return distribute_tensor(whole, sharded.device_mesh, sharded.placements, src_data_rank=None)
