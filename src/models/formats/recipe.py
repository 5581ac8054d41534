"""Recipe of a model: sizes, the class and keys of every part, and the step of its schedules.

The configuration of an exported folder is one. The code that an export carries (`portable/`) reads it with this module
too, where `parts.py` knows the classes of that one model.
"""

import dataclasses
from functools import partial
from typing import Any

from torch import nn

from src.errors import one_line
from src.models.config import GPTConfig
from src.models.formats.parts import find_class
from src.models.gpt import GPT
from src.recurrence.base import Recurrence

#: Rooms that supply the parts of a model; each is a key of the configuration.
ROOMS = ("residual", "norm", "embedding", "recurrence", "mlp")
FOLDERS = {"mlp": "models/mlp"}
#: Parts that exports of earlier versions lack, in their meaning of then.
IMPLIED = {"mlp": {"_target_": "src.models.mlp.gelu.GELU"}}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Description of a model and of its run.

    Args:
        model: keys of a `GPTConfig`.
        rooms: for each of `ROOMS` a `_target_` and the keys of that class.
        seed: seed of the initial weights.
        step, max_steps: optimizer steps that the weights have taken, and of the whole run; None if unknown.
        run: identity of the run (name, hashes).
    """

    model: dict[str, Any]
    rooms: dict[str, dict[str, Any]]
    seed: int
    step: int | None
    max_steps: int | None
    run: dict[str, Any]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rooms", {**IMPLIED, **self.rooms})

    def build(self, where: str) -> GPT:
        """Build the model with its initial weights and its schedules at `step`.

        Args:
            where: file or run that the recipe is from, for error messages.

        Raises:
            ValueError: a class is not one of this project, or rejects its keys.
        """
        parts: dict[str, Any] = {name: build_part(where, name, self.rooms[name]) for name in ROOMS}
        try:
            gpt = GPT(GPTConfig(**self.model), **parts, seed=self.seed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} describes a model that cannot be built: {one_line(error)}") from error
        if self.step is not None and self.max_steps is not None:
            gpt.follow(max(self.step - 1, 0), self.max_steps)  # as in the validation after that step
        return gpt


def build_part(where: str, room: str, keys: dict[str, Any]) -> Any:  # a factory of the room's class
    """Return the factory that a `_target_` and its keys describe.

    Args:
        where: file or run that the keys are from, for error messages.
        room: one of `ROOMS`.
        keys: `_target_` and the arguments of that class.

    Raises:
        ValueError: the class is not one of this project.
    """
    target = str(keys.get("_target_"))
    kind = find_class(room, target)
    if not (isinstance(kind, type) and issubclass(kind, (nn.Module, Recurrence))):
        raise ValueError(
            f"{where} names {target} for {room}, which is not a class of this project's src/{FOLDERS.get(room, room)}/; "
            "put it there to export and load it"
        )
    keys = {**getattr(kind, "added_keys", {}), **keys}  # an older export lacks them
    return partial(kind, **{key: _nested(where, room, value) for key, value in keys.items() if not key.startswith("_")})


def _nested(where: str, room: str, value: Any) -> Any:  # of whatever type the constructor asks for
    """Return a value with the parts of a composition as factories."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return build_part(where, room, value)
    return {key: _nested(where, room, item) for key, item in value.items()}
