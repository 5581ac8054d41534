"""Stop after a step, on a signal or at a time limit: finish the step, save a checkpoint, exit.

After each step the ranks agree on the recorded signal (the highest number wins) over a gloo process group on the CPU, so
a signal to any rank stops all of them after the same step without a GPU synchronization. Outside the training loop there
is no step to finish and the first signal exits at once.
"""

from datetime import timedelta

import lightning as L
import torch
from torch import distributed

from src.callbacks.step_end import StepEndCallback
from src.launch.stop_request import StopRequest


class StopOnSignal(StepEndCallback):
    """Ends training after a step once any rank has received a signal; comes before `Checkpoints`.

    Args:
        request: this process's request to stop.
        max_s: seconds after which the run stops; None for no limit.
        timeout_s: seconds that the ranks wait for each other here.
    """

    def __init__(self, request: StopRequest, *, max_s: float | None, timeout_s: float) -> None:
        self.request = request
        self.max_s = max_s
        self.timeout_s = timeout_s
        self._group: distributed.ProcessGroup | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.request.install()  # Lightning installs its own SIGTERM handler when fit begins
        self.request.deferred = True
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_s))

    def on_step_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.request.check_time(self.max_s)
        agreed = self.request.signum
        if self._group is not None:
            flag = torch.tensor(agreed)
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX, group=self._group)
            agreed = int(flag.item())
        if agreed:
            self.request.agree(agreed)
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would validate before it stops early

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.request.deferred = False
