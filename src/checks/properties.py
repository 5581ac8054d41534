"""Checks of one forward and backward pass: shapes, causality, batch, gradients, dtypes, degenerate input."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from src.checks.base import Subject, draw_tokens
from src.models.gpt import GPT
from src.residual.base import QKV

#: States of the parameters, and whether they are jittered: a zero gate hides the fault behind it until it has moved.
STATES = {"at init": False, "once the parameters have moved (at init a zero gate hides it)": True}


def check_contract(subject: Subject) -> list[str]:
    """Check that read returns a pair, read and end [B, T, D], write a state, and that all values are finite."""
    faults = []
    for when, jittered in STATES.items():
        gpt = subject.build_small(jittered=jittered)
        x_BTD = draw_tokens()[..., None].expand(-1, -1, gpt.config.n_embd).double() / 64
        state = gpt.residual.begin(x_BTD)
        for site in gpt.sites:
            place = f"site {site.index} ({site.kind} of layer {site.layer})"
            pair: object = gpt.residual.read(state, site)
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                return [f"read at {place} returns {type(pair).__name__}; return the pair (x, state)"]
            read, state = pair
            for part in read if isinstance(read, QKV) else (read,):
                if part.shape != x_BTD.shape:
                    faults.append(
                        f"read at {place} gives shape {tuple(part.shape)} {when}; a sublayer needs {tuple(x_BTD.shape)}"
                    )
                    return faults
            state = gpt.residual.write(state, site, torch.tanh(read[0] if isinstance(read, QKV) else read))
            if state is None:
                return [f"write at {place} returns None; return the state"]
        out_BTD = gpt.residual.end(state)
        if out_BTD.shape != x_BTD.shape:
            faults.append(f"end gives shape {tuple(out_BTD.shape)}; the final norm needs {tuple(x_BTD.shape)}")
        if not gpt(draw_tokens()).isfinite().all():
            faults.append(f"logits are not finite {when}; look for a division or a logarithm")
    return faults


def trace_outputs(gpt: GPT, idx_BT: Tensor) -> list[tuple[str, Tensor]]:
    """Return the name and the output of each sublayer in order, then the logits."""
    outputs: list[tuple[str, Tensor]] = []
    hooks = []
    for site in gpt.sites:
        if site.visit == 0:
            module = gpt.h[site.layer].get_submodule(site.kind)
            name = f"site {site.index} ({site.kind} of layer {site.layer})"
            hooks.append(module.register_forward_hook(lambda _m, _a, out, name=name: outputs.append((name, out))))
    logits = gpt(idx_BT)
    for hook in hooks:
        hook.remove()
    return [*outputs, ("the logits", logits)]


def _find_first_difference(gpt: GPT, one: Tensor, two: Tensor, part: Callable[[Tensor], Tensor]) -> str | None:
    """Return the name of the first output whose `part` differs between two inputs."""
    for (name, a), (_, b) in zip(trace_outputs(gpt, one), trace_outputs(gpt, two), strict=True):
        if not torch.allclose(part(a), part(b), rtol=0, atol=1e-9):
            return name
    return None


def check_causality(subject: Subject) -> list[str]:
    """Check that a changed token does not change earlier positions."""
    faults = []
    for when, jittered in STATES.items():
        gpt, idx_BT = subject.build_small(jittered=jittered), draw_tokens()
        for t in (1, idx_BT.shape[1] // 2, idx_BT.shape[1] - 1):
            changed_BT = idx_BT.clone()
            changed_BT[:, t:] = (changed_BT[:, t:] + 17) % gpt.config.vocab_size
            first = _find_first_difference(gpt, idx_BT, changed_BT, lambda x, t=t: x[:, :t])  # type: ignore[misc]  # lambda default
            if first:
                faults.append(
                    f"token {t} changes earlier positions, first seen at {first}, {when}: something "
                    "mixes over the sequence (a mean, a norm or a softmax over dimension 1); make it per position"
                )
                break
    return faults


def check_batch_independence(subject: Subject) -> list[str]:
    """Check that a sequence does not depend on the others of its batch."""
    faults = []
    for when, jittered in STATES.items():
        gpt, idx_BT = subject.build_small(jittered=jittered), draw_tokens()
        other_BT = torch.cat((idx_BT[:1], draw_tokens(2, seed=5)))
        first = _find_first_difference(gpt, idx_BT, other_BT, lambda x: x[:1])
        if first:
            faults.append(
                f"other sequences of the batch change the first, first seen at {first}, {when}: "
                "something mixes over dimension 0; statistics must be per position"
            )
    return faults


def check_gradients(subject: Subject) -> list[str]:
    """Check that every parameter gets a finite gradient, in step 1 and at the schedule of step 1001."""
    faults = []
    for step in (0, 1000):
        gpt = subject.build_small(jittered=False)
        gpt.follow(step, 10_000)
        torch.autograd.backward(gpt.loss(draw_tokens(), draw_tokens(seed=1)))
        for name, param in gpt.named_parameters():
            if param.grad is None:
                faults.append(
                    f"{name} gets no gradient in step {step + 1}, so DDP fails there: build only what is used "
                    "(one packed tensor per role)"
                )
            elif not param.grad.isfinite().all():
                faults.append(f"{name} gets a gradient that is not finite in step {step + 1}")
        if faults:
            break
    return faults


def check_stream_dtype(subject: Subject) -> list[str]:
    """Check that the state and the output stay float32 under bf16 autocast."""
    gpt = subject.build_small(jittered=True, dtype=torch.float32)
    faults: list[str] = []

    def inspect(state: object, place: str) -> None:
        faults.extend(
            f"the state holds {leaf.dtype} after {place}; add in float32: y.to(state.dtype)"
            for leaf in _iterate_tensors(state)
            if leaf.is_floating_point() and leaf.dtype != torch.float32 and leaf.dim() >= 3
        )

    residual = gpt.residual
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        x_BTD = gpt.embedding(draw_tokens())
        with torch.autocast("cpu", enabled=False):
            state = residual.begin(x_BTD)
            for site in gpt.sites:
                read, state = residual.read(state, site)
                y = (read[0] if isinstance(read, QKV) else read).bfloat16()
                state = residual.write(state, site, y)
                inspect(state, f"write at site {site.index}")
        out = gpt.hidden(draw_tokens())
    if out.dtype != torch.float32:
        faults.append(f"the output is {out.dtype}; the head needs a float32 stream")
    return faults[:1]


def _iterate_tensors(node: object) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, tuple | list):
        for item in node:
            yield from _iterate_tensors(item)


def check_degenerate_input(subject: Subject) -> list[str]:
    """Check that positions of variance zero, all 0 or all 1, give finite values and gradients."""
    faults = []
    for value in (0.0, 1.0):
        gpt = subject.build_small(jittered=False, dtype=torch.float32)
        x_BTD = torch.full((2, 4, gpt.config.n_embd), value, requires_grad=True)
        state = gpt.residual.begin(x_BTD)
        for site in gpt.sites:
            read, state = gpt.residual.read(state, site)
            state = gpt.residual.write(state, site, 0 * (read[0] if isinstance(read, QKV) else read))
        out = gpt.residual.end(state)
        (grad,) = torch.autograd.grad(out.sum(), x_BTD, allow_unused=True)
        if not out.isfinite().all() or (grad is not None and not grad.isfinite().all()):
            faults.append(
                f"a stream of {value:g}s everywhere (variance zero) gives values or gradients that are not finite; "
                "add an eps inside the root or the division"
            )
    return faults


def check_initial_loss(subject: Subject) -> list[str]:
    """Check that the first loss is near ln V."""
    gpt = subject.build_small(jittered=False)
    loss = gpt.loss(draw_tokens(8), draw_tokens(8, seed=1)).item()
    expected = math.log(gpt.config.vocab_size)
    if abs(loss - expected) > 0.5:
        return [
            f"the first loss is {loss:.3f}, ln V is {expected:.3f}: the stream reaches the head at a wrong scale; "
            "check what end and the final norm do to it"
        ]
    return []
