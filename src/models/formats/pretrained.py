"""Exported model folders, which describe their model: `from_pretrained(folder)` builds and loads it.

    config.json         sizes; class and keys of the strategy, norm, embedding and recurrence; the optimizer step of
                        the weights, which determines the state of schedules
    model.safetensors   the tensors by name
    *.py                the code of the model, for transformers with `trust_remote_code=True` (`portable/`)

A model that is GPT-2 is written in Hugging Face's own format instead (`huggingface.py`); both formats can be read.
Reading runs no code of the folder: classes are looked up by name in this project's rooms only, and the tensors are
safetensors, not pickles.

Source: Hugging Face transformers (PreTrainedModel.save_pretrained) for the layout.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from src.files import write_json
from src.models.formats.folder import read_config, read_tensors, write_folder
from src.models.formats.gpt2 import find_difference_from_gpt2
from src.models.formats.hub import locate
from src.models.formats.huggingface import load_gpt2, load_matching, read_gpt2, require_gpt2, write_gpt2
from src.models.formats.llama import find_difference_from_llama
from src.models.formats.llama_folder import load_llama, read_llama, write_llama
from src.models.formats.nanogpt import find_checkpoint, read_nanogpt
from src.models.formats.portable.bundle import AUTO_MAP, write_code
from src.models.formats.recipe import IMPLIED, ROOMS, Recipe, build_part
from src.models.gpt import GPT

MODEL_TYPE = "reslab"
ARCHITECTURE = AUTO_MAP["AutoModelForCausalLM"].rpartition(".")[2]
#: Parts of GPT-2; the norm's eps is read from the folder.
GPT2 = {
    "residual": {"_target_": "src.residual.vanilla.Vanilla"},
    "norm": {"_target_": "src.norm.layernorm.LayerNorm"},
    "embedding": {"_target_": "src.embedding.tied.TiedEmbedding"},
    "recurrence": {"_target_": "src.recurrence.none.NoRecurrence"},
}


def write_pretrained(
    gpt: GPT, recipe: Recipe, folder: Path, end_of_text: int | None = None, n_vocab: int | None = None
) -> str:
    """Write `gpt` into an existing folder; return the format, "gpt2", "llama" or "reslab".

    Args:
        gpt: the model.
        recipe: its description.
        folder: the folder.
        end_of_text: the tokenizer's id that starts and ends a text; None where it is not known.
        n_vocab: number of the tokenizer's ids, beyond which generation selects none; None where it is not known.

    Raises:
        ValueError: a part of the model is not a class of this project.
    """
    model_format = _write_model(gpt, recipe, folder, end_of_text)
    if n_vocab is not None and n_vocab < gpt.config.vocab_size:
        ids = {"bos_token_id": end_of_text, "eos_token_id": end_of_text}
        padding = [*range(n_vocab, gpt.config.vocab_size)]
        write_json(folder / "generation_config.json", {**ids, "suppress_tokens": padding})
    return model_format


def _write_model(gpt: GPT, recipe: Recipe, folder: Path, end_of_text: int | None) -> str:
    """Write configuration, weights and code; return the format."""
    if find_difference_from_gpt2(gpt) is None:
        write_gpt2(gpt, folder, end_of_text)
        return "gpt2"
    if find_difference_from_llama(gpt) is None:
        write_llama(gpt, folder, end_of_text)
        return "llama"
    for name in ROOMS:
        build_part("this run", name, recipe.rooms[name])
    weights = {key: value.detach().cpu().clone().contiguous() for key, value in gpt.state_dict().items()}
    names = {
        "architectures": [ARCHITECTURE],
        "auto_map": AUTO_MAP,
        "bos_token_id": end_of_text,
        "dtype": "float32",
        "eos_token_id": end_of_text,
        "model_type": MODEL_TYPE,
    }
    write_folder(folder, {**names, **dataclasses.asdict(recipe)}, weights)
    write_code(folder, recipe.rooms)
    return MODEL_TYPE


def from_pretrained(folder: Path | str) -> GPT:
    """Build the model of an exported folder or a Hugging Face GPT-2 or Llama folder, in evaluation mode.

    Raises:
        ValueError: the folder is missing, or its contents do not make a model.
    """
    return read_pretrained(Path(folder))[1]


def read_pretrained(folder: Path) -> tuple[Recipe, GPT]:
    """Return the recipe and the model of a folder (see `from_pretrained`), a checkpoint of nanoGPT or of the hub."""
    recipe, weights = _read(locate(folder), folder.name)
    gpt = recipe.build(f"{folder}/config.json")
    _load(gpt, weights, folder)
    return recipe, gpt.eval()


def read_recipe(source: Path) -> Recipe:
    """Return the recipe of an exported folder, a Hugging Face GPT-2 or Llama, or a checkpoint of nanoGPT.

    Raises:
        ValueError: there is no such model; the message starts with `source`.
    """
    return _read(locate(source), source.name)[0]


def load_weights(gpt: GPT, source: Path) -> None:
    """Load weights into a model with the same sizes.

    Args:
        gpt: the model.
        source: an exported folder, a Hugging Face GPT-2 or Llama folder, one of the hub, or a checkpoint of nanoGPT.

    Raises:
        ValueError: there is no such model, or its weights do not fit.
    """
    try:
        place = locate(source)
        if (checkpoint := find_checkpoint(place)) is not None:
            require_gpt2(gpt, checkpoint)
            load_matching(gpt, *read_nanogpt(checkpoint), checkpoint)
            return
        config = read_config(place, (MODEL_TYPE, "gpt2", "llama"))
        if config["model_type"] == "gpt2":
            load_gpt2(gpt, place)
        elif config["model_type"] == "llama":
            load_llama(gpt, place)
        else:
            _compare_sizes(gpt, config.get("model", {}), place)
            _load(gpt, _read_weights(place), place)
    except ValueError as error:
        raise ValueError(f"init_from={error}") from error


def _compare_sizes(gpt: GPT, model: dict[str, Any], folder: Path) -> None:
    ours = dataclasses.asdict(gpt.config)
    different = {k: v for k, v in model.items() if k in ours and ours[k] != v and k != "dropout"}
    if different:
        found = ", ".join(f"model.{key}={value} (this model {ours[key]})" for key, value in different.items())
        overrides = " ".join(f"model.{key}={value}" for key, value in different.items())
        raise ValueError(f"{folder} has {found}; give {overrides}")


def _read(place: Path, name: str) -> tuple[Recipe, dict[str, torch.Tensor]]:
    if (checkpoint := find_checkpoint(place)) is not None:
        fields, weights = read_nanogpt(checkpoint)
        norm = {**GPT2["norm"], "eps": fields.pop("eps")}
        kept = {key: value for key, value in weights.items() if fields["bias"] or not key.endswith(".bias")}
        return Recipe(fields, {**GPT2, "norm": norm}, 0, None, None, {"name": name}), kept
    config = read_config(place, (MODEL_TYPE, "gpt2", "llama"))
    if config["model_type"] == "llama":
        fields, rooms, weights = read_llama(place)
        return Recipe(fields, rooms, 0, None, None, {"name": name}), weights
    if config["model_type"] == "gpt2":
        fields, weights = read_gpt2(place)
        norm = {**GPT2["norm"], "eps": config.get("layer_norm_epsilon", 1e-5)}
        return Recipe(fields, {**GPT2, "norm": norm}, 0, None, None, {"name": name}), weights
    names = [field.name for field in dataclasses.fields(Recipe)]
    missing = [name for name in names if name not in config]
    missing += [f"rooms.{room}" for room in ROOMS if room not in {**IMPLIED, **config.get("rooms", {})}]
    if missing:
        raise ValueError(f"{place}/config.json has no {missing[0]}; export the run again")
    return Recipe(**{name: config[name] for name in names}), _read_weights(place)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors by this project's names; `save_pretrained` of transformers writes `gpt.` before them."""
    return {name.removeprefix("gpt."): value for name, value in read_tensors(folder).items()}


def _load(gpt: GPT, weights: dict[str, torch.Tensor], folder: Path) -> None:
    own = gpt.state_dict()
    for key in (*own, *weights):
        here, there = (tree[key].shape if key in tree else None for tree in (own, weights))
        if here != there:
            raise ValueError(
                f"{folder}/model.safetensors does not fit the model: {key} is {_format_shape(there)} there, "
                f"{_format_shape(here)} by the configuration; give the configuration of {folder}/config.json, "
                "as model=from_checkpoint does"
            )
    gpt.load_state_dict(weights, strict=True)


def _format_shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(list(shape))
