"""Lightning strategy of `trainer.strategy=fsdp`, and what does not work with it.

It is Lightning's DDPStrategy (process group, ranks, collectives) with `fully_shard` where that one wraps the module in
DistributedDataParallel. Lightning's ModelParallelStrategy is not used: its mesh is data x tensor parallel and cannot
replicate over nodes, it needs a `configure_model` in the module, and its distributed checkpoints bypass the checkpoint
IO, so that they are neither atomic nor hashed.

Every rank builds the whole model on its CPU and a unit at a time reaches the device; a one-file checkpoint therefore
loads into the whole model, and any number of ranks can resume any other's.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from src.callbacks.sharded_checkpoint import write_sharded
from src.errors import UserError
from src.models.lightning_module import LanguageModel
from src.models.optim.adamw import AdamW
from src.models.optim.muon import Muon
from src.models.sharding import build_mesh, shard_gpt, shard_like
from src.settings.read import Settings

#: Optimizers whose step treats every number of a weight alike, or that gather a weight for it.
OPTIMIZERS = (
    *(AdamW, Muon),
    *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop),
    *(torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.Adadelta),
)


def require_shardable(settings: Settings) -> None:
    """Reject what does not work with `trainer.strategy=fsdp`.

    Raises:
        UserError: the key, and what to give instead.
    """
    if settings.trainer.strategy != "fsdp":
        return
    if settings.safety.background_saves:
        raise UserError(
            "safety.background_saves must be false with trainer.strategy=fsdp, whose ranks write a checkpoint together"
        )
    method = getattr(settings.optimizer.method, "func", settings.optimizer.method)
    if not (isinstance(method, type) and issubclass(method, OPTIMIZERS)):
        known = ", ".join(sorted({kind.__name__ for kind in OPTIMIZERS}))
        raise UserError(
            f"optimizer {getattr(method, '__name__', method)} is not known to take a step on shards of a weight, as "
            f"trainer.strategy=fsdp needs; give one of {known}, or trainer.strategy=ddp"
        )
    for build in settings.callbacks:
        kind = getattr(build, "func", build)
        if isinstance(kind, type) and issubclass(kind, WeightAveraging):
            raise UserError(
                f"the callback {kind.__name__} copies whole weights, which no rank holds with trainer.strategy=fsdp; "
                "leave it out or give trainer.strategy=ddp"
            )


class FSDPStrategy(DDPStrategy):
    """Strategy that divides weights, gradients and moments among the ranks (`models/sharding.py`).

    Args:
        shards_within_node: shard among the ranks of a node and replicate over nodes, instead of sharding over all.
        bf16: gather attention and MLP in bf16.
        timeout_s: seconds that a collective operation may take.
    """

    def __init__(self, *, shards_within_node: bool, bf16: bool, timeout_s: float) -> None:
        super().__init__(timeout=timedelta(seconds=timeout_s))
        self.shards_within_node, self.bf16 = shards_within_node, bf16

    def model_to_device(self) -> None:
        """Leave the module on the CPU; `configure_ddp` moves one unit at a time."""

    def configure_ddp(self) -> None:
        """Shard the model where DDPStrategy wraps it."""
        module = self.lightning_module
        assert isinstance(module, LanguageModel)  # training builds no other module
        n_replica = self.num_nodes if self.shards_within_node else 1
        mesh = build_mesh(self.root_device.type, n_replica=n_replica, n_shard=self.world_size // n_replica)
        shard_gpt(module.gpt, mesh, bf16=self.bf16)
        module.to(self.root_device)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Reduce in every micro-step: otherwise each rank would keep the whole gradients between them."""
        yield

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this rank's shards of whole moments."""
        for optimizer, stored in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            params = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {
                    key: shard_like(value, params[number]) if _is_moment(value, params[number]) else value
                    for key, value in values.items()
                }
                for number, values in stored["state"].items()
            }
            optimizer.load_state_dict({**stored, "state": state})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:  # Any: Lightning's own signature
        """Write a sharded checkpoint; every rank takes part."""
        write_sharded(checkpoint, Path(filepath))


def _is_moment(value: object, param: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == param.shape
