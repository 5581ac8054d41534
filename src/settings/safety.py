"""Section `safety`: limits that keep a run from being lost or from hanging."""

import dataclasses
from typing import Annotated

from pydantic import Field

from src.bounds import PositiveInt

#: Seconds, up to about four months, which every clock can count.
Seconds = Annotated[float, Field(gt=0, le=1e7)]


@dataclasses.dataclass(frozen=True)
class SafetyKeys:
    """Keys of `safety`.

    Args:
        keep_checkpoints: number of checkpoints kept, newest first; a damaged one falls back to the one before.
        grace_s: seconds from a signal to the end of the process, whatever it is doing.
        rank_timeout_s: seconds that ranks wait for one of them.
        background_saves: write checkpoints from a copy in host memory while training continues.
    """

    keep_checkpoints: PositiveInt
    grace_s: Seconds
    rank_timeout_s: Seconds
    background_saves: bool
