"""Lightning's trainer and precision with less around each step; what they do is the same.

What a training cannot change is looked up once, and hooks that nothing here has are not called. These are subclasses
of public classes and override public names only, but where `LanguageModel` says so; a name that Lightning gives up is
then never asked for, which costs time and nothing else (`tests/training/test_stepping.py` counts).
"""

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import lightning as L
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.trainer.states import RunningStage


class StepTrainer(L.Trainer):
    """Lightning's own, for one `fit` in which callbacks validate."""

    enable_validation = False  # a property there, that asks data, module and limits

    @functools.cached_property
    def strategy(self) -> Strategy:  # a property there, asked 75 times a step
        """Chosen when the trainer is made."""
        return super().strategy

    @functools.cached_property
    def lightning_module(self) -> L.LightningModule:  # a property there, asked 56 times
        """None until `fit` sets it."""
        return super().lightning_module

    @property
    def training(self) -> bool:
        """Whether this is the training loop: asked 12 times a step, where comparing names takes five calls."""
        return self.state.stage is RunningStage.TRAINING

    @training.setter
    def training(self, val: bool) -> None:
        lightnings: property = vars(L.Trainer)["training"]
        lightnings.__set__(self, val)

    def fit(self, model: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        """As Lightning's."""
        self.lightning_module = model
        super().fit(model, *args, **kwargs)


class NoProfiler(PassThroughProfiler):
    """Nothing, and at once: Lightning's own enters and leaves a generator 86 times a step."""

    _nothing = contextlib.nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]  # a generator there
        """A context without effect."""
        return self._nothing


class _StepAlone(Precision):
    """The optimizer's step without hooks before it, and the forward's context without one around it."""

    def optimizer_step(  # type: ignore[override]  # Lightning's own differs from its base too
        self,
        optimizer: Any,  # Lightning's protocol of an optimizer
        model: L.LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        """The closure, which is empty where optimization is manual, and the step."""
        closure()
        return optimizer.step(**kwargs)

    def train_step_context(self) -> AbstractContextManager[None]:  # type: ignore[override]  # a generator there
        """Around `training_step`."""
        return self.forward_context()


class Float32(_StepAlone):
    """`trainer.precision=32-true`."""


class Bfloat16(_StepAlone, MixedPrecision):
    """`trainer.precision=bf16-mixed`; nothing is scaled, so nothing is to be unscaled before the step."""


def precision(name: str, accelerator: str) -> Precision:
    """What `L.Trainer(precision=name)` would take."""
    if name == "32-true":
        return Float32()
    return Bfloat16("bf16-mixed", "cpu" if accelerator == "cpu" else "cuda")
