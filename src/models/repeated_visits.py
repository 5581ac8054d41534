"""Repeated visits: visits of the trunk to a layer after its first one (`recurrence`).

They may start in the course of a run. Until then a forward skips them; when they start, parameters with one copy
for each visit are initialized from the first copy.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from src.recurrence.base import Recurrence
from src.residual.base import ResidualStrategy, Site


def select_first_visits(sites: tuple[Site, ...]) -> tuple[Site, ...]:
    """Return the sites that belong to the first visit to their layer."""
    first: dict[int, int] = {}
    for site in sites:
        first.setdefault(site.layer, site.block)
    return tuple(site for site in sites if site.block == first[site.layer])


def require_skippable(recurrence: Recurrence, strategy: ResidualStrategy[Any]) -> None:  # of any state
    """Reject repeated visits that start later if the strategy needs all sites from the first step.

    Raises:
        ValueError: `recurrence.start_step` > 0, and `strategy.may_skip` is False.
    """
    if recurrence.delayed and not strategy.may_skip:
        raise ValueError(
            f"recurrence.start_step must be 0 with {type(strategy).__name__}, whose weights belong to a fixed number "
            "of earlier outputs; give recurrence.start_fraction=null recurrence.start_step=0 or another residual"
        )


def copy_first_(packed: Tensor) -> None:
    """Overwrite all copies in a packed tensor [copies, ...] with the first one."""
    if isinstance(packed, DTensor):  # the copies may lie on different ranks
        whole = packed.full_tensor()
        whole[1:] = whole[:1]
        packed.copy_(distribute_tensor(whole, packed.device_mesh, packed.placements, src_data_rank=None))
    else:
        packed[1:] = packed[:1]


def start_repeated_visits(optimizer: torch.optim.Optimizer, params: Iterable[nn.Parameter]) -> None:
    """Overwrite the copies for later visits with the first one, in the weights and in the optimizer's moments."""
    for param in params:
        copy_first_(param.data)
        for moment in optimizer.state.get(param, {}).values():
            if isinstance(moment, Tensor) and moment.shape == param.shape:
                copy_first_(moment)
