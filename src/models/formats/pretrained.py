"""Exported model folders, which describe their model: `from_pretrained(folder)` builds and loads it.

    config.json         sizes; class and keys of the strategy, norm, embedding and recurrence; the optimizer step of
                        the weights, which determines the state of schedules
    model.safetensors   the tensors by name

A model that is GPT-2 is written in Hugging Face's own format instead (`huggingface.py`); both formats can be read.
A folder contains no code: classes are looked up by name in this project's rooms only, and the tensors are
safetensors, not pickles.

Source: Hugging Face transformers (PreTrainedModel.save_pretrained) for the layout.
"""

import dataclasses
import importlib
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.errors import one_line
from src.models.config import GPTConfig
from src.models.formats.folder import read_config, read_tensors, write_folder
from src.models.formats.gpt2 import find_difference_from_gpt2
from src.models.formats.huggingface import load_gpt2, read_gpt2, write_gpt2
from src.models.gpt import GPT
from src.recurrence.base import Recurrence

MODEL_TYPE = "reslab"
#: Rooms that supply the parts of a model; each is a key of the configuration.
ROOMS = ("residual", "norm", "embedding", "recurrence")
#: Parts of GPT-2; the norm's eps is read from the folder.
GPT2 = {
    "residual": {"_target_": "src.residual.vanilla.Vanilla"},
    "norm": {"_target_": "src.norm.layernorm.LayerNorm"},
    "embedding": {"_target_": "src.embedding.tied.TiedEmbedding"},
    "recurrence": {"_target_": "src.recurrence.none.NoRecurrence"},
}


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

    def build(self, where: str) -> GPT:
        """Build the model with its initial weights and its schedules at `step`.

        Args:
            where: file or run that the recipe is from, for error messages.

        Raises:
            ValueError: a class is not one of this project, or rejects its keys.
        """
        parts: dict[str, Any] = {name: _component(where, name, self.rooms[name]) for name in ROOMS}
        try:
            gpt = GPT(GPTConfig(**self.model), **parts, seed=self.seed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} describes a model that cannot be built: {one_line(error)}") from error
        if self.step is not None and self.max_steps is not None:
            gpt.follow(max(self.step - 1, 0), self.max_steps)  # as in the validation after that step
        return gpt


def write_pretrained(gpt: GPT, recipe: Recipe, folder: Path, end_of_text: int | None = None) -> str:
    """Write `gpt` into an existing folder; return the format, "gpt2" or "reslab".

    Args:
        gpt: the model.
        recipe: its description.
        folder: the folder.
        end_of_text: the tokenizer's id that starts and ends a text; None where it is not known.

    Raises:
        ValueError: a part of the model is not a class of this project.
    """
    if find_difference_from_gpt2(gpt) is None:
        write_gpt2(gpt, folder, end_of_text)
        return "gpt2"
    for name in ROOMS:
        _component("this run", name, recipe.rooms[name])
    weights = {key: value.detach().cpu().clone().contiguous() for key, value in gpt.state_dict().items()}
    write_folder(folder, {"model_type": MODEL_TYPE, **dataclasses.asdict(recipe)}, weights)
    return MODEL_TYPE


def from_pretrained(folder: Path | str) -> GPT:
    """Build the model of an exported folder or a Hugging Face GPT-2 folder, in evaluation mode.

    Raises:
        ValueError: the folder is missing, or its contents do not make a model.
    """
    return read_pretrained(Path(folder))[1]


def read_pretrained(folder: Path) -> tuple[Recipe, GPT]:
    """Return the recipe and the model of a folder (see `from_pretrained`)."""
    recipe, weights = _read(folder)
    gpt = recipe.build(f"{folder}/config.json")
    _load(gpt, weights, folder)
    return recipe, gpt.eval()


def load_weights(gpt: GPT, folder: Path) -> None:
    """Load the weights of an exported folder with the same shapes, or of a Hugging Face GPT-2 folder, into `gpt`.

    Raises:
        ValueError: the folder is missing, or its weights do not fit.
    """
    try:
        if read_config(folder, (MODEL_TYPE, "gpt2"))["model_type"] == "gpt2":
            load_gpt2(gpt, folder)
        else:
            _load(gpt, read_tensors(folder), folder)
    except ValueError as error:
        raise ValueError(f"init_from={error}") from error


def _read(folder: Path) -> tuple[Recipe, dict[str, torch.Tensor]]:
    config = read_config(folder, (MODEL_TYPE, "gpt2"))
    if config["model_type"] == "gpt2":
        fields, weights = read_gpt2(folder)
        norm = {**GPT2["norm"], "eps": config.get("layer_norm_epsilon", 1e-5)}
        return Recipe(fields, {**GPT2, "norm": norm}, 0, None, None, {"name": folder.name}), weights
    names = [field.name for field in dataclasses.fields(Recipe)]
    missing = [name for name in names if name not in config]
    missing += [f"rooms.{room}" for room in ROOMS if room not in config.get("rooms", {})]
    if missing:
        raise ValueError(f"{folder}/config.json has no {missing[0]}; export the run again")
    return Recipe(**{name: config[name] for name in names}), read_tensors(folder)


def _load(gpt: GPT, weights: dict[str, torch.Tensor], folder: Path) -> None:
    own = gpt.state_dict()
    for key in (*own, *weights):
        here, there = (tree[key].shape if key in tree else None for tree in (own, weights))
        if here != there:
            raise ValueError(
                f"{folder}/model.safetensors does not fit the model: {key} is {_format_shape(there)} there, "
                f"{_format_shape(here)} by the configuration; give the configuration of {folder}/config.json"
            )
    gpt.load_state_dict(weights, strict=True)


def _format_shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _component(where: str, room: str, keys: dict[str, Any]) -> Any:  # a factory of the room's class
    target = str(keys.get("_target_"))
    found = re.fullmatch(rf"(src\.{room}\.[a-z0-9_]+)\.([A-Za-z0-9]+)", target)
    kind: Any = None
    if found is not None:
        try:
            kind = getattr(importlib.import_module(found[1]), found[2], None)
        except ImportError:
            kind = None
    if not (isinstance(kind, type) and issubclass(kind, (nn.Module, Recurrence))):
        raise ValueError(
            f"{where} names {target} for {room}, which is not a class of this project's src/{room}/; "
            "put it there to export and load it"
        )
    keys = {**getattr(kind, "added_keys", {}), **keys}  # an older export lacks them
    return partial(kind, **{key: _nested(where, room, value) for key, value in keys.items() if not key.startswith("_")})


def _nested(where: str, room: str, value: Any) -> Any:  # of whatever type the constructor asks for
    """Return a value with the parts of a composition as factories."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return _component(where, room, value)
    return {key: _nested(where, room, item) for key, item in value.items()}
