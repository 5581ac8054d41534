"""Divergence guard: ends a run that has diverged, or has it roll back, before a bad step is recorded or saved.

    not finite       loss, gradient norm, or a parameter
    above uniform    loss > ln V + above_uniform_nats, after warm-up
    spike            loss > level + spike_nats;  level <- level + (loss - level) / min(n, 50) on normal steps

The last two count after `patience_steps` steps in a row. After the first loss or gradient that is not finite the
optimizer changes no weight (`src/models/optim/base.py`), so no value has to be read back at every step: a GPU's
steps are read together, where a row is logged, a validation is due or a checkpoint is saved. Before a validation and
a save, the ranks also compare their weights.

Shape letters: R ranks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed, nn

from src.bounds import NonNegativeInt, PositiveInt, PositiveOrInf
from src.models.lightning_module import StepOutput
from src.models.sharding import count_shards, free_gathered, gather, local_part

#: Normal steps before the level is used, and steps over which it averages.
WARM, HORIZON = 20, 50


class DivergedError(RuntimeError):
    """Training has diverged: noticed after step `step`, beginning with step `began`."""

    def __init__(self, reason: str, *, step: int, began: int) -> None:
        super().__init__(f"step {began}: {reason}")
        self.step, self.began = step, began


class RanksDisagreeError(RuntimeError):
    """Error that the ranks of a run hold different weights."""


@dataclass(frozen=True)
class GuardKeys:
    """Keys of `guard`; `.inf` switches a criterion off.

    Args:
        rollbacks: number of times a run may roll back and skip the data in between; 0 stops it instead.
        above_uniform_nats: nats above ln(vocab_size) that a loss may reach after warm-up.
        spike_nats: nats above its running level that a loss may reach.
        patience_steps: steps in a row over a bound that count as divergence.
    """

    rollbacks: NonNegativeInt
    above_uniform_nats: PositiveOrInf
    spike_nats: PositiveOrInf
    patience_steps: PositiveInt


def checksum(module: nn.Module) -> Tensor:
    """Return a 0-dim int64 that depends on every bit of the parameters, or of this rank's shards of them."""
    total = torch.zeros((), dtype=torch.int64, device=next(module.parameters()).device)
    for param in module.parameters():
        words = local_part(param.detach()).contiguous().view(torch.uint8 if param.element_size() % 4 else torch.int32)
        total = total * 1_000_003 + words.sum(dtype=torch.int64)  # wraps around
    return total


def check_ranks_agree(step: int, module: nn.Module) -> None:
    """Compare the checksums of all ranks that hold the same weights; a collective operation.

    Raises:
        RanksDisagreeError: they differ; raised on every rank.
    """
    if not distributed.is_initialized():
        return
    own = checksum(module)
    sums_R = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sums_R, own)
    found = torch.stack(sums_R).tolist()
    n_shard = count_shards(module)
    other = [str(rank) for rank, value in enumerate(found) if value != found[rank % n_shard]]
    if other:
        replica = "rank 0" if n_shard == 1 else f"the replicas on ranks 0 to {n_shard - 1}"
        raise RanksDisagreeError(
            f"step {step}: rank {', '.join(other)} holds other weights than {replica}; this step is not saved"
        )


class Guard(L.Callback):
    """Checks every step's loss and gradient norm, and the weights before a validation; the first of the callbacks.

    Args:
        keys: the criteria.
        vocab_size: V.
        warmup_steps: warm-up steps of the learning rate.
        reads_after: returns whether to read values back to the host after step n; a CPU reads at every step.
        observe: called with the loss and the gradient norm of every step, in order.
    """

    def __init__(
        self,
        keys: GuardKeys,
        *,
        vocab_size: int,
        warmup_steps: int,
        reads_after: Callable[[int], bool],
        observe: Callable[[float, float], None] = lambda loss, norm: None,
    ) -> None:
        self.keys = keys
        self.observe = observe
        self.ceiling = math.log(vocab_size) + keys.above_uniform_nats
        self.warmup_steps = warmup_steps
        self.reads_after = reads_after
        self.level = 0.0
        self.normal_steps = 0
        self.high = 0
        self._unread: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: object
    ) -> None:  # Any: Lightning declares a tensor or any mapping
        output: StepOutput = outputs
        self._unread += output["loss"], output["grad_norm"]
        if pl_module.device.type == "cpu" or self.reads_after(trainer.global_step):
            self.read(trainer.global_step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check_weights(trainer.global_step, pl_module)

    def read(self, step: int) -> None:
        """Check all steps up to `step` that were not checked yet.

        Raises:
            DivergedError: a criterion is met; raised on every rank.
        """
        if not self._unread:
            return
        on_host = self._unread[0].device.type == "cpu"
        values = [v.item() for v in self._unread] if on_host else torch.stack(self._unread).tolist()
        self._unread.clear()
        losses, norms = values[::2], values[1::2]
        for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), step - len(losses) + 1):
            self.observe(loss, norm)
            self._check(number, loss, norm, noticed=step)

    def check_weights(self, step: int, module: nn.Module) -> None:
        """Check the steps so far and the weights, before a validation or a save.

        Raises:
            DivergedError: a parameter is not finite, or a step meets a criterion.
            RanksDisagreeError: the ranks hold different weights.
        """
        self.read(step)
        free_gathered(module)
        check_ranks_agree(step, module)
        if not math.isfinite(gather(nn.utils.get_total_norm(list(module.parameters()))).item()):
            raise DivergedError("a parameter is not finite", step=step, began=step)

    def _check(self, step: int, loss: float, norm: float, *, noticed: int) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(f"loss {loss:g}, gradient norm {norm:g}", step=noticed, began=step)
        reason = ""
        if step > self.warmup_steps and loss > self.ceiling:
            reason = f"loss {loss:.3f} above {self.ceiling:.3f} (guard.above_uniform_nats)"
        elif self.normal_steps >= WARM and loss > self.level + self.keys.spike_nats:
            reason = f"loss {loss:.3f} over a level of {self.level:.3f} (guard.spike_nats)"
        if reason:
            self.high += 1
            if self.high >= self.keys.patience_steps:
                raise DivergedError(reason, step=noticed, began=step - self.high + 1)
            return
        self.high = 0
        self.normal_steps += 1
        self.level += (loss - self.level) / min(self.normal_steps, HORIZON)

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "sound": self.normal_steps, "high": self.high}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.level, self.normal_steps, self.high = (state_dict[key] for key in ("level", "sound", "high"))
