"""`safety`: what keeps a run from being lost, or from going on wrong."""

import dataclasses

#: A season: longer than a process waits for anything, and within what clocks can count.
LONGEST_S = 1e7


@dataclasses.dataclass(frozen=True)
class SafetyKeys:
    """The keys of `safety`.

    Args:
        keep_checkpoints: checkpoints kept, newest first; a damaged one leaves those before it.
        grace_s: seconds from a signal to the end of the process, whatever it is doing.
        rank_timeout_s: seconds that the ranks wait for one of them.
        background_saves: whether checkpoints are written beside the training, from a copy in the host's memory.
    """

    keep_checkpoints: int
    grace_s: float
    rank_timeout_s: float
    background_saves: bool

    def __post_init__(self) -> None:
        for key in ("keep_checkpoints", "grace_s", "rank_timeout_s"):
            value, bound = getattr(self, key), 1 if key == "keep_checkpoints" else 0
            if value < bound or (bound == 0 and value == 0):
                at = "at least 1" if bound else "positive"
                raise ValueError(f"safety.{key} must be {at}, got {value}")
            if key != "keep_checkpoints" and value > LONGEST_S:
                raise ValueError(f"safety.{key} must be at most {LONGEST_S:g} s, got {value:g}")
