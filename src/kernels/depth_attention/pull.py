"""What the queries of a forward leave in its backward, for the sources that they met to pull (`block_sources.py`)."""

import itertools
from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor


class Met:
    """What a query's backward leaves for its sources; the first one that it meets makes delta, and may round dx."""

    def __init__(
        self,
        query: int,
        dx_BTD: Tensor,
        x_BTD: Tensor | None,
        lse_BT: Tensor,
        delta_BT: Tensor | None = None,
    ) -> None:
        self.query, self.dx_BTD, self.x_BTD, self.lse_BT = query, dx_BTD, x_BTD, lse_BT
        self.delta_BT = delta_BT


class Pull:
    """What has been left in the backward under way: by all queries, by those since a group's, and for its sources."""

    def __init__(self) -> None:
        self._backward = -1
        self.clear()

    def clear(self) -> None:
        self.met: list[Met] = []
        self.since: list[Met] = []
        self.far: dict[int, list[Tensor]] = {}
        self.narrow: bool | None = None  # as the first to pull says: whether dx is kept in bfloat16

    def now(self) -> "Pull":
        """It, with nothing of an earlier backward over the same graph."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward = backward
            self.clear()
        return self

    def leave(self, met: Met) -> None:
        """What one more query has."""
        self.met.append(met)
        self.since.append(met)


_forwards = itertools.count()
_pulls: WeakValueDictionary[int, Pull] = WeakValueDictionary()  # by forward; kept by its autograd graph


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch's
def new_forward() -> int:
    """A number by which the sources and queries of one forward find each other; a compiled graph has none left."""
    return next(_forwards)


def pull_of(forward: int) -> Pull:
    """That of a forward, by its number; whoever asks holds it."""
    return _pulls.setdefault(forward, Pull())


def left(met: Sequence[Met]) -> tuple[list[int], list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Number, dx, x, lse and delta: first those whose delta is to be made, with x."""
    fresh = [one for one in met if one.delta_BT is None]
    known = [one for one in met if one.delta_BT is not None]
    both = [*fresh, *known]
    return (
        [one.query for one in both],
        [one.dx_BTD for one in both],
        [one.x_BTD for one in fresh if one.x_BTD is not None],
        [one.lse_BT for one in both],
        [one.delta_BT for one in known if one.delta_BT is not None],
    )


def made(met: Sequence[Met], delta_BT: Sequence[Tensor], kept_BTD: Sequence[Tensor]) -> None:
    """Give queries the delta that was made for them, after which nobody needs x, and dx as it is to be kept."""
    fresh = [one for one in met if one.delta_BT is None]
    for i, (one, delta) in enumerate(zip(fresh, delta_BT, strict=True)):
        one.delta_BT, one.x_BTD = delta, None
        if kept_BTD:
            one.dx_BTD = kept_BTD[i]
