"""Estimate whether a run fits this machine's memory, before anything is built.

    parameters    16 bytes each (weight, gradient, AdamW's two moments), on every rank, divided by the ranks that share
                  them (`trainer.strategy=fsdp`); under Muon too, whose step keeps the weight beside its one moment
    stream        at least half of one tensor of the stream, 2 * M * T * D bytes
    activations   what autograd keeps of one micro-step, counted on fake tensors

Parameters or a stream tensor above the total memory are rejected. If parameters and activations exceed the free memory,
a warning is logged. Activations of a deep model are extrapolated from shallow ones: for every strategy they are a
polynomial of second degree in the depth.

Shape letters: M micro-batch size, T block_size, D n_embd.
"""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from src.checks.base import Subject
from src.checks.cost import BYTES_PER_PARAM, count_kept_bytes
from src.checks.quick import build_subject
from src.errors import UserError, one_line
from src.files import format_bytes
from src.models.config import GPTConfig
from src.models.gpt import GPT
from src.settings.read import Settings

log = logging.getLogger(__name__)

#: Upper bound of the bytes that a shipped strategy keeps per token, layer and channel; where it fits, nothing is counted.
CRUDE_BYTES = 400
#: Depths that the activations of a deeper model are extrapolated from.
DEPTHS = (2, 4, 6)
OWN_GROUPS, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Memory of a device or machine: name, total and free bytes, number of ranks that share it."""

    name: str
    total: int
    free: int
    ranks: int


def check_memory(settings: Settings) -> None:
    """Compare the run with the memory of its device.

    Raises:
        UserError: not even the parameters and their optimizer can fit.
    """
    memory = _read_memory(settings)
    model = settings.model
    _reject_params(settings, memory, 8 * model.n_layer * model.n_embd**2)  # all MLPs: a bound for every strategy
    micro = getattr(settings.data, "keywords", {}).get("micro_batch_size", 1)
    stream = 2 * micro * model.block_size * model.n_embd
    if stream * memory.ranks > memory.total:
        raise UserError(
            f"data.micro_batch_size={micro} sequences of model.block_size={model.block_size} need "
            f"{format_bytes(stream * memory.ranks)} for a single tensor of the stream, and {memory.name} has "
            f"{format_bytes(memory.total)}; lower data.micro_batch_size"
        )
    subject = build_subject(settings)
    if settings.trainer.checkpoint_activations:
        subject = dataclasses.replace(subject, make=partial(_make_checkpointed, subject))
    n_params = _count_params(subject, model)
    if n_params is None:
        return
    _reject_params(settings, memory, n_params)
    state = BYTES_PER_PARAM * n_params // settings.trainer.n_shard
    crude = CRUDE_BYTES * micro * model.block_size * model.n_embd * model.n_layer
    if (state + crude) * memory.ranks <= memory.free:
        return
    kept = estimate_kept(subject, model, micro, bf16=settings.trainer.precision != "32-true")
    if kept is not None and (state + kept) * memory.ranks > memory.free:
        log.warning(
            "this run may not fit: about %s (%s for parameters and optimizer, %s kept for the backward%s) of %s free "
            "in %s; a smaller data.micro_batch_size (now %d) needs less",
            format_bytes((state + kept) * memory.ranks),
            format_bytes(state),
            format_bytes(kept),
            f", on each of {memory.ranks} ranks" if memory.ranks > 1 else "",
            format_bytes(memory.free),
            memory.name,
            micro,
        )


def _make_checkpointed(subject: Subject, config: GPTConfig, seed: int) -> GPT:
    gpt = subject.make(config, seed)
    gpt.checkpoints_activations = True
    return gpt


def _reject_params(settings: Settings, memory: Memory, n_params: int) -> None:
    need = BYTES_PER_PARAM * n_params * memory.ranks // settings.trainer.n_shard
    if need <= memory.total:
        return
    model, ranks = settings.model, memory.ranks
    raise UserError(
        f"model.n_layer={model.n_layer}, model.n_embd={model.n_embd} and model.vocab_size={model.vocab_size} make "
        f"at least {n_params:,} parameters, which take {format_bytes(need)} with gradients and the optimizer's moments"
        f"{f' on {ranks} ranks' if ranks > 1 else ''}, and {memory.name} has {format_bytes(memory.total)}; choose a "
        f"smaller model{' or fewer trainer.devices' if ranks > 1 else ''}"
    )


def _count_params(subject: Subject, model: GPTConfig) -> int | None:
    """Count the parameters on fake tensors; None where the model cannot be built without memory."""
    try:
        with FakeTensorMode():
            return sum(p.numel() for p in subject.make(model, 0).parameters() if p.requires_grad)
    except Exception as error:  # a strategy may read values, which fake tensors lack; building the model shows it
        log.debug("parameters were not counted: %s", one_line(error))
        return None


def estimate_kept(subject: Subject, model: GPTConfig, micro: int, *, bf16: bool) -> int | None:
    """Estimate the bytes that a micro-step keeps for its backward; None where the strategy cannot be traced."""

    def kept(n_layer: int) -> int:
        return count_kept_bytes(subject, dataclasses.replace(model, n_layer=n_layer), micro, bf16=bf16)[0]

    try:
        if model.n_layer <= DEPTHS[-1]:
            return kept(model.n_layer)
        first, second, third = map(kept, DEPTHS)
    except Exception as error:  # as above, or components that name layers beyond these depths
        log.debug("activations were not counted: %s", one_line(error))
        return None
    slope, bend = (second - first) / 2, (third - 2 * second + first) / 8
    steps = model.n_layer - DEPTHS[0]
    return round(first + slope * steps + bend * steps * (steps - 2))


def _read_memory(settings: Settings) -> Memory:
    keys = settings.trainer
    if keys.accelerator == "gpu":
        free, total = torch.cuda.mem_get_info(0)  # of rank 0; on another rank's GPU a CUDA context would stay
        return Memory("the GPU", total, free, 1)
    return Memory("this machine's memory", *read_host_bytes(), keys.devices)


def read_host_bytes() -> tuple[int, int]:
    """Return total (with swap) and free bytes of this machine, or of the container that limits the process."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
    total, free = found["MemTotal"] + found.get("SwapTotal", 0), found["MemAvailable"]
    for limit, used in _read_limits():
        total, free = min(total, limit), min(free, limit - used)
    return total, free


def _read_limits(own: Path = OWN_GROUPS, mount: Path = CGROUPS) -> list[tuple[int, int]]:
    """Return limit and use in bytes of this process's control groups and of those above them, version 1 or 2."""
    found = []
    for line in own.read_text(encoding="utf-8").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = mount / kinds
        group = root / path.lstrip("/")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if kinds else ("memory.max", "memory.current")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            texts = [(folder / name).read_text() for name in names if (folder / name).is_file()]
            if len(texts) == 2 and texts[0].strip().isdigit():
                found.append((int(texts[0]), int(texts[1])))
    return found
