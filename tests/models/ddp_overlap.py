"""What DDP's settings cost or hide in a step of two CPU ranks; run it by hand.

    python -m tests.models.ddp_overlap [rounds] [key=value ...]

Each rank has one thread and one model for each setting, and steps them in turns, in an order shuffled every round;
a barrier stands before each step and the wall's clock counts. `alone` exchanges nothing: what a setting takes more is
what its exchange did not hide. Keys are `n_layer`, `n_embd`, `vocab_size`, `block_size`, `batch`. Gradients of all
settings are compared with those of the first.
"""

import os
import random
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from src.models.gpt import GPT
from src.models.optim.base import apply_gradients, build_optimizer, set_lr
from src.training.process import keep_freed_memory
from tests.support import adamw, tiny_gpt

SIZES = {"n_layer": 12, "n_embd": 256, "vocab_size": 2048, "block_size": 256, "batch": 4}
ADAMW = adamw(1e-3)
SETTINGS: dict[str, dict[str, Any] | None] = {
    "torch's default: buckets of 25 MB": {},
    "gradient_as_bucket_view, as trained": {"gradient_as_bucket_view": True},
    "static_graph": {"static_graph": True},
    "both": {"gradient_as_bucket_view": True, "static_graph": True},
    "views, buckets of 5 MB": {"gradient_as_bucket_view": True, "bucket_cap_mb": 5},
    "views, buckets of 100 MB": {"gradient_as_bucket_view": True, "bucket_cap_mb": 100},
    "alone": None,
}


class Loss(nn.Module):
    """A GPT whose forward is its loss, as DDP wants it."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return self.gpt.head_loss(self.gpt.hidden(idx_BT), targets_BT)


def contestant(options: dict[str, Any] | None, sizes: dict[str, int]) -> Callable[[Tensor], list[Tensor]]:
    """A step on token ids [B, T + 1]; returns copies of the first gradients."""
    names = ("n_layer", "n_embd", "vocab_size", "block_size")
    gpt = tiny_gpt(n_head=4, seed=1, **{name: sizes[name] for name in names})
    module: nn.Module = Loss(gpt)
    if options is not None:
        module = DistributedDataParallel(module, broadcast_buffers=False, **options)
    optimizer = build_optimizer(gpt, ADAMW)
    set_lr(optimizer, ADAMW.lr)
    params = list(gpt.parameters())

    def step(tokens_BT: Tensor) -> list[Tensor]:
        loss = module(tokens_BT[:, :-1], tokens_BT[:, 1:])
        loss.backward()
        first = [p.grad.clone() for p in params[:4] if p.grad is not None]
        apply_gradients(optimizer, params, ADAMW.grad_clip, loss)
        return first

    return step


def rank_main(rank: int, port: int, rounds: int, sizes: dict[str, int]) -> None:
    """One rank; rank 0 prints."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    keep_freed_memory()
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    steps = {name: contestant(options, sizes) for name, options in SETTINGS.items()}
    generator = torch.Generator().manual_seed(rank)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = random.Random(0)
    for number in range(rounds + 2):
        tokens_BT = torch.randint(sizes["vocab_size"], (sizes["batch"], sizes["block_size"] + 1), generator=generator)
        first: dict[str, list[Tensor]] = {}
        for name in order.sample(list(steps), len(steps)):
            distributed.barrier()
            began = time.perf_counter()
            first[name] = steps[name](tokens_BT)
            distributed.barrier()
            seconds[name].append(time.perf_counter() - began)
        whole = first["torch's default: buckets of 25 MB"]
        for name, grads in first.items():
            if SETTINGS[name] is not None:
                torch.testing.assert_close(grads, whole, rtol=1e-4 * (number + 1), atol=1e-6 * (number + 1))
    if rank == 0:
        tell({name: times[2:] for name, times in seconds.items()}, sizes)
    distributed.destroy_process_group()


def tell(seconds: dict[str, list[float]], sizes: dict[str, int]) -> None:
    """The table."""
    print(", ".join(f"{key}={value}" for key, value in sizes.items()))
    print("| setting | ms a step | over alone |\n|---|---:|---:|")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["alone"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {name} | {1e3 * statistics.median(times):.1f} | {middle:.3f} [{low:.3f}, {high:.3f}] |")


def main() -> None:
    """Two ranks on this machine."""
    numbers = [int(a) for a in sys.argv[1:] if "=" not in a]
    given = {a.split("=")[0]: int(a.split("=")[1]) for a in sys.argv[1:] if "=" in a}
    unknown = sorted(set(given) - set(SIZES))
    if unknown:
        sys.exit(f"{unknown[0]} is not a size; sizes are {', '.join(SIZES)}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rounds = numbers[0] if numbers else 15
    multiprocessing.spawn(rank_main, args=(port, rounds, SIZES | given), nprocs=2)  # type: ignore[no-untyped-call]  # torch's


if __name__ == "__main__":
    main()
