"""Checks by short trainings: on real text beside vanilla, and on random tokens, from which nothing can be learned."""

import functools
import itertools
import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from src.checks.base import Figures, Subject, draw_tokens
from src.models.gpt import GPT
from src.models.optim.adamw import AdamW
from src.models.optim.base import OptimizerConfig, build_optimizer, set_lr
from src.models.optim.schedules.cosine import Cosine

VOCABULARY, CONTEXT, WIDTH, HEADS, BATCH = 512, 64, 64, 4, 8
N_STEPS = 100
#: Nats below vanilla's loss after N_STEPS beyond which a leak is likelier than a good strategy.
SUSPICIOUS_WIN = 0.5
#: Nats by which the loss over vanilla's may rise, as a median over SPIKE_STEPS steps.
SPIKE = 1.0
SPIKE_STEPS = 5

#: Training on random ids: with lr 3e-3 a leak behind a zero gate stays within noise (4.00 of ln 64 = 4.16 nats), with
#: 1e-2 it reaches 3.05.
RANDOM_IDS, RANDOM_STEPS, RANDOM_LR = 64, 150, 1e-2
#: Nats below the entropy of the ids that sampling noise does not explain (3 standard deviations are 0.02).
LEAK = 0.06


def reduce_vocabulary(stream: NDArray[np.uint16]) -> Tensor:
    """Map token ids to a small vocabulary: the 511 most frequent ids, and one id for all others."""
    ids, counts = np.unique(stream, return_counts=True)
    most_frequent = ids[np.argsort(-counts, kind="stable")][: VOCABULARY - 1]
    table = np.full(2**16, VOCABULARY - 1, dtype=np.int64)
    table[most_frequent] = np.arange(len(most_frequent))
    return torch.from_numpy(table[stream])


def train(gpt: GPT, batches: Iterator[tuple[Tensor, Tensor]], n_steps: int, lr: float) -> list[float]:
    """Train for `n_steps` and return the losses; stops at the first that is not finite."""
    method = functools.partial(AdamW, betas=(0.9, 0.95), eps=1e-8)
    config = OptimizerConfig(lr=lr, min_lr=lr / 10, warmup_steps=10, weight_decay=0.1, grad_clip=1.0, method=method)
    optimizer = build_optimizer(gpt, config)
    schedule = Cosine(lr, config.min_lr, config.warmup_steps, n_steps)
    losses: list[float] = []
    for step in range(n_steps):
        gpt.follow(step, n_steps)
        loss = gpt.loss(*next(batches))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            break
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(gpt.parameters(), config.grad_clip)
        set_lr(optimizer, schedule.lr(step))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def check_learning(subject: Subject, vanilla: Subject, stream: NDArray[np.uint16]) -> tuple[list[str], Figures]:
    """Check 100 steps on real text beside vanilla: the loss falls, does not spike and is not implausibly low."""
    text = reduce_vocabulary(stream)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        while True:
            at = torch.randint(len(text) - CONTEXT - 1, (BATCH,), generator=generator)
            rows = torch.stack([text[i : i + CONTEXT + 1] for i in at.tolist()])
            yield rows[:, :-1], rows[:, 1:]

    runs, seconds = [], []
    for trained in (vanilla, subject):
        gpt = _build(trained, VOCABULARY)
        start = time.process_time()
        runs.append(train(gpt, batches(), N_STEPS, 1e-3))
        seconds.append((time.process_time() - start) / len(runs[-1]))
    theirs, ours = runs
    figures: Figures = {
        "loss": _mean_of_last(ours),
        "loss_vanilla": _mean_of_last(theirs),
        "step_over_vanilla": seconds[1] / seconds[0],
        "losses": ours,
    }
    return find_faults(ours, theirs), figures


def find_faults(losses: list[float], vanilla: list[float]) -> list[str]:
    """Return the faults of a loss curve beside vanilla's on the same batches."""
    last, base = _mean_of_last(losses), _mean_of_last(vanilla)
    if not math.isfinite(losses[-1]):
        return [
            f"the loss is {losses[-1]} at step {len(losses)} of a 100-step training on text: check for an overflow, a "
            "root of zero, or what on_step writes at that step"
        ]
    if last > losses[0] - 0.3:
        return [
            f"the loss does not fall on text: {losses[0]:.2f} at the start, {last:.2f} after {N_STEPS} steps (vanilla "
            f"{base:.2f}); are the branches' outputs reaching the end?"
        ]
    # A head start that vanilla makes up for is a rise over vanilla, but not of the loss itself.
    over_vanilla = [ours - theirs for ours, theirs in zip(losses, vanilla, strict=True)]
    rise = min(_find_lasting_rise(over_vanilla), _find_lasting_rise(losses))
    if rise > SPIKE:
        return [
            f"the loss jumps by {rise:.2f} nats over vanilla's on text and stays there for {SPIKE_STEPS // 2 + 1} steps "
            "at least; lower the strategy's lr_scale"
        ]
    if last < base - SUSPICIOUS_WIN:
        return [
            f"the loss after {N_STEPS} steps is {last:.2f}, {base - last:.2f} under vanilla's: implausibly low; the "
            "model probably sees future tokens, check for a leak"
        ]
    return []


def _find_lasting_rise(curve: list[float]) -> float:
    """Return the largest rise of a curve above its lowest value so far, in medians of a few steps.

    Subtracting vanilla's loss removes the noise of the batches. Single steps do not count: at this size the loss of
    any strategy, vanilla included, may jump for a step or two, in float64 as well.
    """
    medians = [float(np.median(curve[i : i + SPIKE_STEPS])) for i in range(len(curve) - SPIKE_STEPS + 1)]
    lowest = itertools.accumulate(medians, min)
    return max(now - low for now, low in zip(medians, lowest, strict=True))


def _mean_of_last(losses: list[float]) -> float:
    return float(np.mean(losses[-10:]))


def _build(subject: Subject, vocab_size: int) -> GPT:
    sizes = {"n_embd": WIDTH, "n_head": HEADS, "block_size": CONTEXT, "vocab_size": vocab_size}
    return subject.make(subject.small_config(**sizes), 0)


def check_random_tokens(subject: Subject) -> tuple[list[str], Figures]:
    """Check that a training on independent uniform ids does not get below their entropy: only a leak can."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step in itertools.count():
            rows = draw_tokens(BATCH, CONTEXT + 1, RANDOM_IDS, seed=step)
            yield rows[:, :-1], rows[:, 1:]

    losses = train(_build(subject, RANDOM_IDS), batches(), RANDOM_STEPS, RANDOM_LR)
    entropy, last = math.log(RANDOM_IDS), _mean_of_last(losses)
    figures: Figures = {"loss_random": last, "entropy_random": entropy}
    fault = (
        f"on independent random tokens the loss fell to {last:.3f}, under their entropy of {entropy:.3f}: the model "
        "sees the tokens that it predicts"
    )
    return [fault] if last < entropy - LEAK else [], figures
