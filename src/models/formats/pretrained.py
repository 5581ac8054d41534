"""Weights as a folder that says what model they are for: `from_pretrained(folder)` gives the model back.

    config.json         what the model is built from: sizes, and by name and keys the strategy, norm, embedding
                        and recurrence; the optimizer step of the weights, from which schedules follow
    model.safetensors   its tensors, under their own names

A model that *is* GPT-2 goes out in Hugging Face's own format instead (`huggingface.py`), and comes back from
either. Nothing in a folder is code: a class is looked up by name in this project's rooms, and only there; the
tensors are safetensors, not pickles.

Source: the layout is Hugging Face transformers' (PreTrainedModel.save_pretrained).
"""

import dataclasses
import importlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from src.errors import one_line
from src.models.config import GPTConfig
from src.models.formats.gpt2 import other_than_gpt2
from src.models.formats.huggingface import load_gpt2, read_config, read_gpt2, write_gpt2
from src.models.gpt import GPT
from src.recurrence.base import Recurrence

MODEL_TYPE = "reslab"
#: The rooms that a model is put together from; each is a key of the configuration.
ROOMS = ("residual", "norm", "embedding", "recurrence")
#: What GPT-2 is put together from; its norm's eps is the folder's.
GPT2 = {
    "residual": {"_target_": "src.residual.vanilla.Vanilla"},
    "norm": {"_target_": "src.norm.layernorm.LayerNorm"},
    "embedding": {"_target_": "src.embedding.tied.TiedEmbedding"},
    "recurrence": {"_target_": "src.recurrence.none.NoRecurrence"},
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a model is built from, and where its run stood.

    Args:
        model: the keys of a GPTConfig.
        rooms: for each of `ROOMS` a `_target_` and the keys of that class.
        seed: of the initial weights.
        step, max_steps: optimizer steps behind the weights, and of the whole run; None where nothing says.
        run: what identifies the run (name, hashes), for those who ask later.
    """

    model: dict[str, Any]
    rooms: dict[str, dict[str, Any]]
    seed: int
    step: int | None
    max_steps: int | None
    run: dict[str, Any]

    def build(self, where: str) -> GPT:
        """The model with its initial weights, its schedules standing at `step`.

        Raises:
            ValueError: naming `where`, a class that is not this project's, or keys that do not fit.
        """
        parts: dict[str, Any] = {name: _component(where, name, self.rooms[name]) for name in ROOMS}
        try:
            gpt = GPT(GPTConfig(**self.model), **parts, seed=self.seed)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where} describes a model that cannot be built: {one_line(error)}") from error
        if self.step is not None and self.max_steps is not None:
            gpt.follow(max(self.step - 1, 0), self.max_steps)  # as in the validation of that step
        return gpt


def write_pretrained(gpt: GPT, recipe: Recipe, folder: Path) -> str:
    """Write `gpt` into an existing folder; returns the format, "gpt2" or "reslab".

    Raises:
        ValueError: a part of the model is not a class of this project.
    """
    if other_than_gpt2(gpt) is None:
        write_gpt2(gpt, folder)
        return "gpt2"
    for name in ROOMS:
        _component("this run", name, recipe.rooms[name])
    weights = {key: value.detach().cpu().clone().contiguous() for key, value in gpt.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone
    config = {"model_type": MODEL_TYPE, **dataclasses.asdict(recipe)}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return MODEL_TYPE


def read_recipe(folder: Path) -> Recipe:
    """What the model in `folder` is built from, this project's or Hugging Face's GPT-2.

    Raises:
        ValueError: no such folder, or a configuration that is neither.
    """
    config = read_config(folder, (MODEL_TYPE, "gpt2"))
    if config["model_type"] == "gpt2":
        fields, _ = read_gpt2(folder)
        norm = {**GPT2["norm"], "eps": config.get("layer_norm_epsilon", 1e-5)}
        return Recipe(fields, {**GPT2, "norm": norm}, 0, None, None, {"name": folder.name})
    names = [field.name for field in dataclasses.fields(Recipe)]
    missing = [name for name in names if name not in config]
    missing += [f"rooms.{room}" for room in ROOMS if room not in config.get("rooms", {})]
    if missing:
        raise ValueError(f"{folder}/config.json has no {missing[0]}; export the run again")
    return Recipe(**{name: config[name] for name in names})


def from_pretrained(folder: Path | str) -> GPT:
    """The model of an exported folder, or of a Hugging Face GPT-2 folder, in evaluation mode.

    Raises:
        ValueError: no such folder, or what is in it does not make a model.
    """
    folder = Path(folder)
    recipe = read_recipe(folder)
    gpt = recipe.build(f"{folder}/config.json")
    gpt.load_state_dict(_weights(folder, gpt), strict=True)
    return gpt.eval()


def load_weights(gpt: GPT, folder: Path) -> None:
    """Give `gpt` the weights of an exported folder of the same shapes, or of a Hugging Face GPT-2 folder.

    Raises:
        ValueError: no such folder, or weights that are another model's.
    """
    if read_config(folder, (MODEL_TYPE, "gpt2"))["model_type"] == "gpt2":
        load_gpt2(gpt, folder)
    else:
        gpt.load_state_dict(_weights(folder, gpt), strict=True)


def _weights(folder: Path, gpt: GPT) -> dict[str, torch.Tensor]:
    if read_config(folder, (MODEL_TYPE, "gpt2"))["model_type"] == "gpt2":
        return read_gpt2(folder)[1]
    try:
        weights = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder}/model.safetensors cannot be read: {one_line(error)}") from error
    own = gpt.state_dict()
    for key in (*own, *weights):
        here, there = (tree[key].shape if key in tree else None for tree in (own, weights))
        if here != there:
            raise ValueError(
                f"{folder}/model.safetensors does not fit the model: {key} is {_shape(there)} there, "
                f"{_shape(here)} by the configuration; give the configuration of {folder}/config.json"
            )
    return weights


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(list(shape))


def _component(where: str, room: str, keys: dict[str, Any]) -> Any:  # a factory that takes the room's spec
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
            f"{where} names {target} for {room}, which is no class of this project's src/{room}/; "
            "put it there to export and load it"
        )
    return partial(kind, **{key: value for key, value in keys.items() if not key.startswith("_")})
