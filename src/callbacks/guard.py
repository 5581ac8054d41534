"""The divergence guard: a run that goes wrong ends, or goes back, before it says anything false.

    not finite       loss, gradient norm, or a parameter
    above uniform    loss > ln V + above_uniform_nats, after warm-up
    spike            loss > level + spike_nats;  level <- level + (loss - level) / min(n, 50) on sound steps

The last two count once they hold for `patience_steps` steps in a row. From the first loss or gradient that is not
finite on, the optimizer changes no weight (`src/models/optim/adamw.py`), so nothing must be read back in each step:
on a GPU all steps since the last look are read at once, where a row is logged, a validation is due or a checkpoint
saved. At the latter two the ranks also compare their weights.

Shape letters: R ranks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor, distributed, nn

from src.models.lightning_module import StepResult

#: Sound steps before a level is one, and steps over which it averages.
SETTLED, HORIZON = 20, 50


class DivergedError(RuntimeError):
    """Training has gone wrong: noticed after step `step`, from step `began` on."""

    def __init__(self, reason: str, *, step: int, began: int) -> None:
        super().__init__(f"step {began}: {reason}")
        self.step, self.began = step, began


class RanksDisagreeError(RuntimeError):
    """The ranks of a run no longer hold the same weights."""


@dataclass(frozen=True)
class GuardKeys:
    """The keys of `guard`; `.inf` switches a criterion off.

    Args:
        rollbacks: times that a run may go back and skip the data in between; 0 stops it.
        above_uniform_nats: how far above ln(vocab_size) a loss may lie after warm-up.
        spike_nats: how far above its running level.
        patience_steps: for how many steps in a row.
    """

    rollbacks: int
    above_uniform_nats: float
    spike_nats: float
    patience_steps: int

    def __post_init__(self) -> None:
        if self.rollbacks < 0:
            raise ValueError(f"guard.rollbacks must not be negative, got {self.rollbacks}; 0 stops at once")
        if self.patience_steps < 1:
            raise ValueError(f"guard.patience_steps must be at least 1, got {self.patience_steps}")
        for key in ("above_uniform_nats", "spike_nats"):
            value = getattr(self, key)
            if not value > 0:
                raise ValueError(f"guard.{key} must be positive, got {value}; .inf switches it off")


def checksum(module: nn.Module) -> Tensor:
    """An int64 that follows from every bit of the parameters, 0-dim."""
    total = torch.zeros((), dtype=torch.int64, device=next(module.parameters()).device)
    for param in module.parameters():
        words = param.detach().contiguous().view(torch.uint8 if param.element_size() % 4 else torch.int32)
        total = total * 1_000_003 + words.sum(dtype=torch.int64)  # wraps around
    return total


def refuse_other_weights(step: int, module: nn.Module) -> None:
    """Compare the ranks' checksums, on every rank.

    Raises:
        RanksDisagreeError: on every rank alike.
    """
    if not distributed.is_initialized():
        return
    own = checksum(module)
    sums_R = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sums_R, own)
    found = torch.stack(sums_R).tolist()
    other = [str(rank) for rank, value in enumerate(found) if value != found[0]]
    if other:
        raise RanksDisagreeError(
            f"step {step}: rank {', '.join(other)} holds other weights than rank 0; nothing of this step is saved"
        )


class Guard(L.Callback):
    """Judges every step's loss and gradient norm; comes first among the callbacks, and before each save.

    Args:
        keys: what counts as gone wrong.
        vocab_size: V.
        warmup_steps: of the learning rate.
        look: whether to read the steps so far back to the host after step n; a CPU does it at every step.
    """

    def __init__(
        self, keys: GuardKeys, *, vocab_size: int, warmup_steps: int, look: Callable[[int], bool]
    ) -> None:
        self.keys = keys
        self.ceiling = math.log(vocab_size) + keys.above_uniform_nats
        self.warmup_steps = warmup_steps
        self.look = look
        self.level = 0.0
        self.sound = 0
        self.high = 0
        self._unread: list[Tensor] = []

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,  # Lightning's type says tensor or mapping; ours is the mapping
        *_: object,
    ) -> None:
        result: StepResult = outputs["step"]
        self._unread += result.loss, result.grad_norm
        if pl_module.device.type == "cpu" or self.look(trainer.global_step):
            self.read(trainer.global_step)

    def read(self, step: int) -> None:
        """Judge all steps up to `step` that were not judged yet.

        Raises:
            DivergedError: on every rank alike.
        """
        if not self._unread:
            return
        on_host = self._unread[0].device.type == "cpu"
        values = [v.item() for v in self._unread] if on_host else torch.stack(self._unread).tolist()
        self._unread.clear()
        losses, norms = values[::2], values[1::2]
        for number, (loss, norm) in enumerate(zip(losses, norms, strict=True), step - len(losses) + 1):
            self._judge(number, loss, norm, noticed=step)

    def check_weights(self, step: int, module: nn.Module) -> None:
        """Judge the steps so far and the weights themselves, before they are saved or scored.

        Raises:
            DivergedError: a parameter is not finite.
            RanksDisagreeError: the ranks hold other weights.
        """
        self.read(step)
        refuse_other_weights(step, module)
        if not math.isfinite(nn.utils.get_total_norm(list(module.parameters())).item()):
            raise DivergedError("a parameter is not finite", step=step, began=step)

    def _judge(self, step: int, loss: float, norm: float, *, noticed: int) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(f"loss {loss:g}, gradient norm {norm:g}", step=noticed, began=step)
        reason = ""
        if step > self.warmup_steps and loss > self.ceiling:
            reason = f"loss {loss:.3f} above {self.ceiling:.3f} (guard.above_uniform_nats)"
        elif self.sound >= SETTLED and loss > self.level + self.keys.spike_nats:
            reason = f"loss {loss:.3f} over a level of {self.level:.3f} (guard.spike_nats)"
        if reason:
            self.high += 1
            if self.high >= self.keys.patience_steps:
                raise DivergedError(reason, step=noticed, began=step - self.high + 1)
            return
        self.high = 0
        self.sound += 1
        self.level += (loss - self.level) / min(self.sound, HORIZON)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {"level": self.level, "sound": self.sound, "high": self.high}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the level of an earlier session."""
        self.level, self.sound, self.high = (state_dict[key] for key in ("level", "sound", "high"))
