"""Several callbacks as one: Lightning calls every hook of every callback in every step, empty or not."""

from collections.abc import Callable
from typing import Any

import lightning as L

#: The hooks that members may have.
HOOKS = ("on_train_start", "on_train_batch_end", "on_train_end", "on_fit_end", "on_exception")


class Group(L.Callback):
    """Passes each hook on to those members that have it, in their order; members keep nothing in checkpoints.

    Args:
        members: callbacks with hooks of `HOOKS` only.

    Raises:
        ValueError: a member has another hook, or a state.
    """

    def __init__(self, *members: L.Callback) -> None:
        self.members = members
        for member in members:
            unknown = [name for name in dir(L.Callback) if _overrides(member, name) and name not in HOOKS]
            if unknown:
                raise ValueError(
                    f"{type(member).__name__}.{unknown[0]} is not passed on by a group; leave it out"
                )
        self._start, self._step, self._end, self._fit_end, self._failed = map(self._having, HOOKS)

    def _having(self, hook: str) -> list[Callable[..., None]]:
        return [getattr(member, hook) for member in self.members if _overrides(member, hook)]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for call in self._start:
            call(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *step: Any) -> None:
        for call in self._step:
            call(trainer, pl_module, *step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for call in self._end:
            call(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for call in self._fit_end:
            call(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        for call in self._failed:
            call(trainer, pl_module, exception)


def _overrides(member: L.Callback, name: str) -> bool:
    return not name.startswith("__") and getattr(type(member), name) is not getattr(L.Callback, name)
