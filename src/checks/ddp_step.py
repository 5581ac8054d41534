"""Program of one rank of the two-rank check: three DDP steps on its own data, then a checksum of the parameters."""

import hashlib
import os
import pickle
import sys
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from src.checks.base import Subject, draw_tokens
from src.models.gpt import GPT

#: Seconds that a rank waits for the other in one exchange, once both have started.
EXCHANGE_TIMEOUT_S = 60


class _Loss(nn.Module):
    """Loss of the model as a forward, the call that DDP wraps."""

    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the loss of token ids and targets [B, T]."""
        return self.gpt.loss(idx_BT, targets_BT)


def main() -> int:
    """Print the checksum; exits with 1 if DDP raises."""
    file, rank = Path(sys.argv[1]), int(sys.argv[2])
    subject = cast(Subject, pickle.loads(file.read_bytes()))  # written by the check a moment ago
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    rendezvous = f"file://{file}.rendezvous"
    timeout = timedelta(seconds=EXCHANGE_TIMEOUT_S)
    distributed.init_process_group("gloo", rendezvous, timeout=timeout, rank=rank, world_size=2)
    gpt = subject.build_small(jittered=False, dtype=torch.float32)
    _take_steps(gpt, rank)
    digest = hashlib.sha256()
    for param in gpt.parameters():
        digest.update(param.detach().numpy().tobytes())
    print(digest.hexdigest())
    distributed.destroy_process_group()
    return 0


def _take_steps(gpt: GPT, rank: int) -> None:
    """Take three steps, and release the DDP object before its process group is destroyed.

    As the last owner of the group, DDP would wait for the group's threads while holding the GIL, which one of them may
    need: a deadlock.
    """
    wrapped = DistributedDataParallel(_Loss(gpt), find_unused_parameters=False, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-3)
    for step in range(3):
        gpt.follow(step, 100)
        wrapped(draw_tokens(seed=2 * step + rank), draw_tokens(seed=100 + rank)).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    sys.exit(main())
