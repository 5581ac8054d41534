"""Strategies with one typical fault each."""

from typing import Any

import torch
from torch import Tensor, nn

from src.residual.base import Site, StreamSpec
from src.residual.vanilla import Vanilla


class ReadsTheFuture(Vanilla):
    """Vanilla that centers the stream over the sequence."""

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state - state.mean(1, keepdim=True), state


class ReadsTheFutureBehindAGate(Vanilla):
    """Vanilla that reads the next token behind a gate that is zero at initialization."""

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__(spec)
        self.gate_S = nn.Parameter(torch.zeros(spec.n_site))

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state + self.gate_S[site.index] * state.roll(-1, 1), state


class MixesTheBatch(Vanilla):
    """Vanilla that centers the stream over the batch."""

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state - state.mean(0, keepdim=True), state


class UnusedParameter(Vanilla):
    """Vanilla with a scale for a site that does not exist."""

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__(spec)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in range(spec.n_site + 1))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + self.scales[site.index + 1] * y_BTD


class StacksAllLayers(Vanilla):
    """Attention over a stack of all earlier outputs, built anew at every site."""

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__(spec)
        self.query_SD = nn.Parameter(torch.zeros(spec.n_site, spec.n_embd))

    def begin(self, x0_BTD: Tensor) -> Any:
        return (x0_BTD,)

    def read(self, state: Any, site: Site) -> Any:
        v = torch.stack(state)
        weight = (torch.nn.functional.rms_norm(v, v.shape[-1:]) * self.query_SD[site.index]).sum(-1, keepdim=True)
        return (weight.softmax(0) * v).sum(0), state

    def write(self, state: Any, site: Site, y_BTD: Tensor) -> Any:
        return (*state, y_BTD.float() if y_BTD.dtype == torch.bfloat16 else y_BTD)

    def end(self, state: Any) -> Tensor:
        return torch.stack(state).sum(0)


class NaNAtStep30(Vanilla):
    """Vanilla with a schedule that takes the root of a negative number from step 30 on."""

    scale: Tensor

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__(spec)
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def on_step(self, step: int, max_steps: int) -> None:
        self.scale.copy_(torch.tensor(float(29 - step if max_steps == 100 and step != 50 else 1)).sqrt().clamp(max=1))

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + self.scale * y_BTD


class DividesByAVariance(Vanilla):
    """Vanilla with a norm without eps."""

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return state / state.std(-1, keepdim=True), state


class ItemOnTheStep(Vanilla):
    """Vanilla with a schedule that every forward reads back to the host."""

    step: Tensor

    def __init__(self, spec: StreamSpec) -> None:
        super().__init__(spec)
        self.register_buffer("step", torch.zeros(()), persistent=False)

    def on_step(self, step: int, max_steps: int) -> None:
        self.step.fill_(step)

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + min(1.0, (1 + self.step.item()) / 10) * y_BTD


class PythonNumberOnTheStep(ItemOnTheStep):
    """Vanilla with a schedule in a Python number, which recompiles the graph."""

    factor = 1.0

    def on_step(self, step: int, max_steps: int) -> None:
        self.factor = 1.0 + step / max_steps

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state + self.factor * y_BTD


class AbsurdLoss(Vanilla):
    """Vanilla without a final norm, with a stream too large for the head."""

    def owns_norm(self, site: Site | None) -> bool:
        return site is None

    def end(self, state: Tensor) -> Tensor:
        return 3000 * state


class LosesFloat32(Vanilla):
    """Vanilla whose stream takes the dtype of the sublayers' outputs."""

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return state.to(y_BTD.dtype) + y_BTD


class WrongShape(Vanilla):
    """Vanilla that reads twice the width."""

    def read(self, state: Tensor, site: Site) -> tuple[Tensor, Tensor]:
        return torch.cat((state, state), -1), state


class Explodes(Vanilla):
    """Vanilla that multiplies the stream by 8 at every site, which the final norm hides."""

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
        return 8 * state + y_BTD


class ReadsWithoutAState(Vanilla):
    """Vanilla whose read returns the input alone, a tensor that unpacks over the batch."""

    def read(self, state: Tensor, site: Site) -> Any:
        return state


class WritesNothing(Vanilla):
    """Vanilla without a return in write."""

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Any:
        state + y_BTD


class MisspeltAttribute(Vanilla):
    """Vanilla that reads a parameter which does not exist; torch raises the error."""

    def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Any:
        return state + self.alhpa * y_BTD
