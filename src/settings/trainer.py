"""Section `trainer`: its keys as configured, and as resolved for this machine."""

import dataclasses
import os
import re
from typing import Annotated, Literal

import torch
from pydantic import Field

from src.kernels.cpu_matmul import resolve_onednn
from src.launch.world import World, read_world

#: Optimizer steps, below what sums over a run could overflow.
Steps = Annotated[int, Field(ge=1, le=10**12)]


@dataclasses.dataclass(frozen=True)
class TrainerKeys:
    """Keys of `trainer`; auto takes what the launcher started, else what the machine has.

    `devices` counts the processes of each node, `restarts` how often they are launched again after one of them has died
    or failed. `keep_steps` lists the steps whose checkpoints are never deleted. `peak_flops` are the FLOP/s of a device,
    of which MFU is a share. `overfit_batches` is the number of global batches that training repeats. `detect_anomaly`
    checks every backward for NaN and names the forward operation.

    Raises:
        ValueError: `max_time` cannot be read, a step of `keep_steps` lies beyond the run, or debugging keys do not fit.
    """

    max_steps: Steps
    max_time: str | None
    log_every_steps: Steps
    val_every_steps: Steps
    checkpoint_every_steps: Steps
    stream_pictures: bool
    accelerator: Literal["auto", "cpu", "gpu"]
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    strategy: Literal["auto", "ddp", "fsdp"]
    precision: Literal["auto", "32-true", "bf16-mixed"]
    compile: Literal["auto"] | bool
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)]
    onednn: Literal["auto"] | bool = False
    num_nodes: Literal["auto"] | Annotated[int, Field(ge=1, le=65536)] = "auto"
    restarts: Annotated[int, Field(ge=0, le=1000)] = 0
    checkpoint_activations: bool = False
    keep_steps: Literal["powers_of_two"] | list[Steps] | None = None
    shard_within_node: bool = False
    overfit_batches: Steps | None = None
    detect_anomaly: bool = False
    peak_flops: Annotated[float, Field(gt=0, le=1e20)] | None = None

    def __post_init__(self) -> None:
        max_seconds(self.max_time)
        beyond = [step for step in self.kept_steps if step > self.max_steps]
        if beyond:
            raise ValueError(
                f"trainer.keep_steps must be <= trainer.max_steps={self.max_steps}, got {beyond[0]}; leave it out or "
                "train longer"
            )
        if self.overfit_batches is not None and self.overfit_batches > self.max_steps:
            raise ValueError(
                f"trainer.overfit_batches must be <= trainer.max_steps={self.max_steps}, got {self.overfit_batches}; "
                "repeat fewer batches or train longer"
            )
        if self.detect_anomaly and self.compile is True:
            raise ValueError(
                "trainer.detect_anomaly=true needs trainer.compile=false: a compiled graph has no operations to name; "
                "give that, or leave out detect_anomaly"
            )

    @property
    def kept_steps(self) -> list[int]:
        """Steps whose checkpoints are never deleted, in order."""
        if self.keep_steps == "powers_of_two":
            return [2**i for i in range(self.max_steps.bit_length())]
        return sorted(set(self.keep_steps or []))


@dataclasses.dataclass(frozen=True)
class TrainerSettings(TrainerKeys):
    """Keys of `trainer` with every auto resolved."""

    accelerator: Literal["cpu", "gpu"]
    devices: int
    precision: Literal["32-true", "bf16-mixed"]
    compile: bool
    threads: int
    onednn: bool
    num_nodes: int = 1

    @property
    def world_size(self) -> int:
        """Number of ranks on all nodes."""
        return self.devices * self.num_nodes

    @property
    def n_shard(self) -> int:
        """Number of ranks among which the parameters and the optimizer's state are divided."""
        if self.strategy != "fsdp":
            return 1
        return self.devices if self.shard_within_node else self.world_size


def resolve_trainer(keys: TrainerKeys) -> TrainerSettings:
    """Resolve every `auto` for this machine.

    Raises:
        ValueError: the machine has no GPU, or fewer than configured, or a launcher started other ranks.
    """
    n_gpu = torch.cuda.device_count()
    accelerator = keys.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if n_gpu else "cpu"
    if accelerator == "gpu" and not n_gpu:
        raise ValueError("trainer.accelerator=gpu, but torch sees no GPU here; use trainer=cpu")
    on_gpu = accelerator == "gpu"
    devices, num_nodes = resolve_ranks(keys, read_world(), n_gpu if on_gpu else 1)
    if on_gpu and devices > n_gpu:
        raise ValueError(
            f"trainer.devices must be at most {n_gpu}, the GPUs that this process sees, got {devices}; "
            "a launcher must not bind single GPUs to tasks (srun --gpu-bind=none)"
        )
    precision = keys.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
    strategy = resolve_strategy(keys, devices * num_nodes)
    compiles = keys.compile
    if compiles == "auto":
        compiles = on_gpu and strategy != "fsdp" and not keys.detect_anomaly
    resolved = {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": strategy,
        "precision": precision,
        "compile": compiles,
        "threads": default_threads(devices) if keys.threads == "auto" else keys.threads,
        "onednn": not on_gpu and resolve_onednn(keys.onednn),
    }
    return TrainerSettings(**{**dataclasses.asdict(keys), **resolved})


def resolve_strategy(keys: TrainerKeys, world_size: int) -> Literal["auto", "ddp", "fsdp"]:
    """Return the strategy for a number of ranks.

    Raises:
        ValueError: `strategy=fsdp` has nothing to shard among, or cannot be combined with another key.
    """
    if keys.strategy != "fsdp":
        if keys.shard_within_node:
            raise ValueError("trainer.shard_within_node=true needs trainer.strategy=fsdp; give that, or leave it out")
        return "ddp" if world_size > 1 else keys.strategy
    if world_size == 1:
        raise ValueError(
            "trainer.strategy=fsdp shards among two ranks or more, got 1; give trainer.devices=<number of GPUs>, or "
            "trainer.strategy=auto"
        )
    if keys.compile is True:
        raise ValueError(
            "trainer.compile must be false with trainer.strategy=fsdp, which gathers weights between the sublayers of "
            "the compiled graph; give trainer.compile=false, or trainer.strategy=ddp"
        )
    return "fsdp"


def resolve_ranks(keys: TrainerKeys, world: World, own: int) -> tuple[int, int]:
    """Return the processes per node and the number of nodes.

    Args:
        keys: `devices` and `num_nodes`, each a number or auto.
        world: what a launcher started; without one, this process starts the ranks of this machine.
        own: processes for auto without a launcher.

    Raises:
        ValueError: a number differs from what the launcher started, several nodes have no launcher, or `restarts` is
            given to ranks that a launcher restarts.
    """
    if not world.is_launched:
        if keys.num_nodes not in ("auto", 1):
            raise ValueError(
                f"trainer.num_nodes must be 1 without a launcher, got {keys.num_nodes}; start every node with torchrun "
                "or srun (docs/scaling-out.md)"
            )
        return own if keys.devices == "auto" else int(keys.devices), 1
    if keys.restarts and world.launcher != "reslab":
        raise ValueError(
            f"trainer.restarts must be 0 under {world.launcher}, which restarts ranks itself, got {keys.restarts}; see "
            "docs/scaling-out.md"
        )
    started = {"devices": (world.local_size, "processes per node"), "num_nodes": (world.n_node, "nodes")}
    for key, (count, unit) in started.items():
        if getattr(keys, key) not in ("auto", count):
            raise ValueError(
                f"trainer.{key} must be {count}, the {unit} that {world.launcher} started, got {getattr(keys, key)}; "
                "leave it at auto, or start as many"
            )
    return world.local_size, world.n_node


def default_threads(ranks: int) -> int:
    """Return the CPU threads of a rank: OMP_NUM_THREADS if set, else the cores of this process divided by the ranks."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal() and int(requested) >= 1:
        return int(requested)
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def max_seconds(max_time: str | None) -> float | None:
    """Return `trainer.max_time` in seconds.

    Raises:
        ValueError: `max_time` does not have the form days:hours:minutes:seconds.
    """
    if max_time is None:
        return None
    found = re.fullmatch(r"(\d{1,6}):(\d\d):(\d\d):(\d\d)", max_time)
    if found is None:
        raise ValueError(
            f"trainer.max_time must be days:hours:minutes:seconds as in 00:11:55:00, or null, got {max_time!r}"
        )
    days, hours, minutes, seconds = map(int, found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
