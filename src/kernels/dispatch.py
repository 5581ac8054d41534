"""Backend dispatch: select which of `reference`, `cpp` and `triton` runs an operation, once per case and process.

An `Operation` has a reference (its definition in PyTorch, which is also the fallback) and may have kernels: `cpp` for
the CPU, `triton` for a CUDA device. The first time it meets a case (device, dtype, sizes) it asks the kernel of that
device why it cannot run it. A kernel that cannot be built, raises an error or fails `verify` is rejected with one line
in the log, and the reference runs. `REGISTRY` holds all decisions; `task=check` prints them.
"""

import contextlib
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

log = logging.getLogger(__name__)

#: Return why a kernel cannot run a case, from its device, dtype and sizes; None if it can. It may raise any error.
WhyNot = Callable[..., str | None]
Function = Callable[..., Tensor | Sequence[Tensor]]


class Decision(NamedTuple):
    """Backend of an operation for one case."""

    operation: str
    device: torch.device
    dtype: torch.dtype
    sizes: tuple[tuple[str, object], ...]
    backend: str
    reason: str


class Registry:
    """Table of the decisions of this process, and the two switches that they depend on."""

    def __init__(self) -> None:
        self.decisions: dict[tuple[object, ...], Decision] = {}
        self.backend_of_device = {"cpu": "cpp", "cuda": "triton"}
        self.residual_kernels = True

    @contextlib.contextmanager
    def without_residual_kernels(self) -> Iterator[None]:
        """Run the operations of residual strategies by their references, to measure what kernels save."""
        before, self.residual_kernels = self.residual_kernels, False
        try:
            yield
        finally:
            self.residual_kernels = before

    def record(self, decision: Decision) -> None:
        """Add a decision, which replaces an earlier one on the same case."""
        self.decisions[decision[:4]] = decision

    def forget(self) -> None:
        """Drop all decisions, so that every operation decides again."""
        self.decisions.clear()

    def table(self) -> str:
        """Return the decisions as lines of text: operation, case, backend and reason."""
        rows = [("operation", "case", "backend", "reason")]
        for d in sorted(self.decisions.values(), key=str):
            sizes = (f"{name} {size}" for name, size in d.sizes)
            case = ", ".join([str(d.device), str(d.dtype).removeprefix("torch."), *sizes])
            rows.append((d.operation, case, d.backend, d.reason))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
        )


REGISTRY = Registry()


class Operation:
    """Operation with a reference and kernels, of which it selects one for each case.

    Args:
        name: the operation's name in the log and in the table.
        cpp: returns why the C++ kernel cannot run a case on the CPU; None if there is no such kernel.
        triton: the same for the Triton kernel on a CUDA device.
        compiled: backends that `torch.compile` can call; it gets the reference in place of all others.
        residual: `REGISTRY.without_residual_kernels` applies to it.
    """

    def __init__(
        self,
        name: str,
        *,
        cpp: WhyNot | None = None,
        triton: WhyNot | None = None,
        compiled: Iterable[str] = ("triton",),
        residual: bool = False,
    ) -> None:
        self.name, self.residual, self.compiled = name, residual, frozenset(compiled)
        self.kernels = {"cpp": cpp, "triton": triton}

    def backend_for(self, x: Tensor, **sizes: object) -> str:
        """Return the backend for tensors of the device and dtype of `x`: reference, cpp or triton.

        Tensor subclasses get the reference. Inside `torch.compile` the answer is a constant of the graph.
        """
        compiling = torch.compiler.is_compiling()
        if (self.residual and not REGISTRY.residual_kernels) or (not compiling and type(x) is not Tensor):
            return "reference"
        backend = self._decide(x.device, x.dtype, **sizes)
        return "reference" if compiling and backend not in self.compiled else backend

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
    def _decide(self, device: torch.device, dtype: torch.dtype, **sizes: object) -> str:
        case = (self.name, device, dtype, tuple(sizes.items()))
        decision = REGISTRY.decisions.get(case)
        if decision is None:
            decision = Decision(*case, *self._select(device, dtype, sizes))
            REGISTRY.record(decision)
        return decision.backend

    def _select(self, device: torch.device, dtype: torch.dtype, sizes: dict[str, object]) -> tuple[str, str]:
        """Return the backend of a case and the reason, which is logged if a kernel is rejected."""
        backend = REGISTRY.backend_of_device.get(device.type, "reference")
        why_not = self.kernels.get(backend)
        if why_not is None:
            return "reference", f"there is no kernel for {device.type}"
        level = logging.WARNING if backend == "triton" else logging.INFO
        if backend == "triton" and importlib.util.find_spec("triton") is None:
            reason: str | None = "Triton is not installed"
        else:
            try:
                reason = why_not(device, dtype, **sizes)
            except Exception as error:  # a compiler for an unknown machine may raise anything
                reason, level = f"{type(error).__name__}: {error}".splitlines()[0], logging.WARNING
        if reason is None:
            return backend, f"fastest backend on {device.type}"
        if dtype == torch.float64:  # checks alone compute in float64
            level = logging.DEBUG
        log.log(level, "%s falls back to PyTorch on %s (%s): %s", self.name, device, dtype, reason)
        return "reference", reason


def verify(kernel: Function, reference: Function, cases: Iterable[Sequence[Tensor]], tolerance: float) -> str | None:
    """Compare a kernel with its reference in value and gradient; return how it fails, or None.

    The reference runs in float64 on the same numbers. Gradients are those of a random linear function of all outputs
    that require one, with respect to all floating-point inputs. No input is written to, and no global random state.

    Args:
        kernel: maps the tensors of a case to a tensor or several.
        reference: the same in PyTorch.
        cases: inputs, small and random.
        tolerance: maximum error of an output or gradient over its own largest element.
    """
    # The first use may be a validation, or a unit of activation checkpointing, whose hooks count all saved tensors.
    own_hooks = saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), own_hooks:
        for number, case in enumerate(cases):
            ours, cotangents = _differentiate(kernel, case, None)
            exact = [x.double() if x.is_floating_point() else x for x in case]
            theirs, _ = _differentiate(reference, exact, cotangents)
            for (name, x), (_, y) in zip(ours, theirs, strict=True):
                off = _relative_error(x, y)
                if not off <= tolerance:  # NaN is an error too
                    return f"{name} of case {number} is off by {off:.1e} of its size, more than {tolerance:.1e}"
    return None


def _differentiate(
    function: Function, case: Sequence[Tensor], cotangents: list[Tensor | None] | None
) -> tuple[list[tuple[str, Tensor]], list[Tensor | None]]:
    """Return named outputs and gradients, and the cotangents (None: the output requires no gradient), drawn if absent."""
    inputs = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in case]
    outputs = function(*inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    if cotangents is None:
        generator = torch.Generator().manual_seed(0)
        cotangents = [
            torch.randn(x.shape, generator=generator).to(x.device, x.dtype) if x.requires_grad else None
            for x in outputs
        ]
    results = [(f"output {k}", x.detach()) for k, x in enumerate(outputs)]
    pairs = [(x, c.to(x.dtype)) for x, c in zip(outputs, cotangents, strict=True) if c is not None]
    if pairs:
        leaves = [x for x in inputs if x.requires_grad]
        ends, weights = [x for x, _ in pairs], [c for _, c in pairs]
        grads = torch.autograd.grad(ends, leaves, weights, materialize_grads=True)
        results += [(f"gradient {k}", grad) for k, grad in enumerate(grads)]
    return results, cotangents


def _relative_error(x: Tensor, y: Tensor) -> float:
    """Return the largest difference over the largest element of `y`."""
    if x.shape != y.shape:
        return float("inf")
    if not y.numel():
        return 0.0
    size = y.abs().amax().double().clamp_min(torch.finfo(torch.float32).tiny)
    return float((x.double() - y.double()).abs().amax() / size)
