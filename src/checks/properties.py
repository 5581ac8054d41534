"""Properties of one forward and backward: shapes, causality, batch, gradients, types, degenerate input."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from src.checks.base import Subject, tokens, where
from src.models.gpt import GPT
from src.residual.base import QKV

STATES = ("init", "moved")


def contract(subject: Subject) -> list[str]:
    """Every verb keeps [B, T, D], every value is finite."""
    faults = []
    for state in STATES:
        gpt = subject.small(jittered=state == "moved")
        x_BTD = tokens()[..., None].expand(-1, -1, gpt.config.n_embd).double() / 64
        flow = gpt.residual.begin(x_BTD)
        for site in gpt.sites:
            read, flow = gpt.residual.read(flow, site)
            for part in read if isinstance(read, QKV) else (read,):
                if part.shape != x_BTD.shape:
                    faults.append(
                        f"read at site {site.index} ({site.kind} of layer {site.layer}) gives shape "
                        f"{tuple(part.shape)} {where(state)}; a sublayer needs {tuple(x_BTD.shape)}"
                    )
                    return faults
            flow = gpt.residual.write(flow, site, torch.tanh(read[0] if isinstance(read, QKV) else read))
        out_BTD = gpt.residual.end(flow)
        if out_BTD.shape != x_BTD.shape:
            faults.append(f"end gives shape {tuple(out_BTD.shape)}; the final norm needs {tuple(x_BTD.shape)}")
        if not gpt(tokens()).isfinite().all():
            faults.append(f"logits are not finite {where(state)}; look for a division or a logarithm")
    return faults


def reads(gpt: GPT, idx_BT: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What each sublayer gives, and the logits, in order."""
    seen: list[tuple[str, Tensor]] = []
    hooks = []
    for site in gpt.sites:
        if site.visit == 0:
            module = gpt.h[site.layer].get_submodule(site.kind)
            name = f"site {site.index} ({site.kind} of layer {site.layer})"
            hooks.append(module.register_forward_hook(lambda _m, _a, out, name=name: seen.append((name, out))))
    logits = gpt(idx_BT)
    for hook in hooks:
        hook.remove()
    yield from seen
    yield "the logits", logits


def _first_difference(gpt: GPT, one: Tensor, two: Tensor, part: Callable[[Tensor], Tensor]) -> str | None:
    for (name, a), (_, b) in zip(reads(gpt, one), reads(gpt, two), strict=True):
        if not torch.allclose(part(a), part(b), rtol=0, atol=1e-9):
            return name
    return None


def causality(subject: Subject) -> list[str]:
    """A changed future token changes nothing earlier."""
    faults = []
    for state in STATES:
        gpt, idx_BT = subject.small(jittered=state == "moved"), tokens()
        for t in (1, idx_BT.shape[1] // 2, idx_BT.shape[1] - 1):
            changed_BT = idx_BT.clone()
            changed_BT[:, t:] = (changed_BT[:, t:] + 17) % gpt.config.vocab_size
            place = _first_difference(gpt, idx_BT, changed_BT, lambda x, t=t: x[:, :t])  # type: ignore[misc]  # lambda default
            if place:
                faults.append(
                    f"token {t} changes earlier positions, first seen at {place}, {where(state)}: something mixes "
                    "over the sequence (a mean, a norm or a softmax over dimension 1); make it per position"
                )
                break
    return faults


def batch_independence(subject: Subject) -> list[str]:
    """A sequence does not see the others of its batch."""
    faults = []
    for state in STATES:
        gpt, idx_BT = subject.small(jittered=state == "moved"), tokens()
        other_BT = torch.cat((idx_BT[:1], tokens(2, seed=5)))
        place = _first_difference(gpt, idx_BT, other_BT, lambda x: x[:1])
        if place:
            faults.append(
                f"other sequences of the batch change the first, first seen at {place}, {where(state)}: something "
                "mixes over dimension 0; statistics must be per position"
            )
    return faults


def gradients(subject: Subject) -> list[str]:
    """Every parameter has a finite gradient, in step 1 and at step 1000's schedule."""
    faults = []
    for step in (0, 1000):
        gpt = subject.small(jittered=False)
        gpt.follow(step, 10_000)
        torch.autograd.backward(gpt.loss(tokens(), tokens(seed=1)))
        faults += [
            f"{name} gets no gradient in step {step + 1}, so DDP fails there: build only what is used "
            "(one packed tensor a role)"
            for name, param in gpt.named_parameters()
            if param.grad is None
        ]
        faults += [
            f"{name} gets a gradient that is not finite in step {step + 1}"
            for name, param in gpt.named_parameters()
            if param.grad is not None and not param.grad.isfinite().all()
        ]
        if faults:
            return faults
    return faults


def stream_type(subject: Subject) -> list[str]:
    """Under bf16 autocast the state and the output stay float32."""
    gpt = subject.small(jittered=True, dtype=torch.float32)
    low: list[str] = []

    def look(state: object, place: str) -> None:
        low.extend(
            f"the state holds {leaf.dtype} after {place}; add in float32: .to(state's type)"
            for leaf in _tensors(state)
            if leaf.is_floating_point() and leaf.dtype != torch.float32 and leaf.dim() >= 3
        )

    residual = gpt.residual
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        x_BTD = gpt.embedding(tokens())
        with torch.autocast("cpu", enabled=False):
            state = residual.begin(x_BTD)
            for site in gpt.sites:
                read, state = residual.read(state, site)
                y = (read[0] if isinstance(read, QKV) else read).bfloat16()
                state = residual.write(state, site, y)
                look(state, f"write at site {site.index}")
        out = gpt.hidden(tokens())
    if out.dtype != torch.float32:
        low.append(f"the output is {out.dtype}; the head needs a float32 stream")
    return low[:1]


def _tensors(node: object) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, tuple | list):
        for item in node:
            yield from _tensors(item)


def degenerate_input(subject: Subject) -> list[str]:
    """Positions that are all zero or all alike give finite values and gradients."""
    faults = []
    for value in (0.0, 1.0):
        gpt = subject.small(jittered=False, dtype=torch.float32)
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


def initial_loss(subject: Subject) -> list[str]:
    """The first loss is near ln V."""
    gpt = subject.small(jittered=False)
    loss = gpt.loss(tokens(8), tokens(8, seed=1)).item()
    expected = math.log(gpt.config.vocab_size)
    if abs(loss - expected) > 0.5:
        return [
            f"the first loss is {loss:.3f}, ln V is {expected:.3f}: the stream reaches the head at a wrong scale; "
            "look at what end and the final norm do to it"
        ]
    return []
