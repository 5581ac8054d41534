"""One rank of the two-rank check: three DDP steps on its own data, then a checksum of the parameters."""

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

from src.checks.base import Subject, tokens
from src.models.gpt import GPT

#: How long a rank waits for the other in one exchange, once both have started.
PATIENCE_S = 60


class _Loss(nn.Module):
    def __init__(self, gpt: GPT) -> None:
        super().__init__()
        self.gpt = gpt

    def forward(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """DDP wraps a forward, so the loss is one."""
        return self.gpt.loss(idx_BT, targets_BT)


def main() -> int:
    """Print the checksum; leave with 1 where DDP refuses."""
    file, rank = Path(sys.argv[1]), int(sys.argv[2])
    subject = cast(Subject, pickle.loads(file.read_bytes()))  # written by the check a moment ago
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    meeting = f"file://{file}.meet"
    patience = timedelta(seconds=PATIENCE_S)
    distributed.init_process_group("gloo", meeting, timeout=patience, rank=rank, world_size=2)
    gpt = subject.small(jittered=False, dtype=torch.float32)
    _steps(gpt, rank)
    digest = hashlib.sha256()
    for param in gpt.parameters():
        digest.update(param.detach().numpy().tobytes())
    print(digest.hexdigest())
    distributed.destroy_process_group()
    return 0


def _steps(gpt: GPT, rank: int) -> None:
    """DDP's own object ends here, before its process group: as the group's last owner it waits for the group's threads
    while it holds Python's lock, which one of them may want (1 of 9 ranks on a busy machine never ended).
    """
    wrapped = DistributedDataParallel(_Loss(gpt), find_unused_parameters=False, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-3)
    for step in range(3):
        gpt.follow(step, 100)
        wrapped(tokens(seed=2 * step + rank), tokens(seed=100 + rank)).backward()
        optimizer.step()
        optimizer.zero_grad()


if __name__ == "__main__":
    sys.exit(main())
