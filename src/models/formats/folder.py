"""Model folders: a `config.json` and the weights, as Hugging Face transformers lays them out.

    model.safetensors                                           what this project writes
    model.safetensors.index.json, model-00001-of-00002.safetensors, ...
    pytorch_model.bin, or its index and shards                  pickles, of which only tensors are loaded

Error messages start with the folder, so that a caller can put its own key before it (`init_from=<folder> has no ...`).
"""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.errors import one_line
from src.files import is_lfs_pointer, sha256_file

#: Files of weights in the order in which they are looked for.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def require_empty(folder: Path) -> None:
    """Reject an output folder that holds anything.

    Raises:
        ValueError: `folder` is a file, or is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"output={folder} exists already; name a folder that does not")


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write a model into an existing folder; `config` has to be serializable as JSON."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner only
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path, model_types: tuple[str, ...]) -> dict[str, Any]:  # JSON
    """Return the `config.json` of a folder that holds a model of one of `model_types`.

    Raises:
        ValueError: the folder is missing or incomplete, or holds another type of model.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give a Hugging Face GPT-2 or Llama folder")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json; give a Hugging Face GPT-2 or Llama folder with one, or export a run by "
            "task=export run=<run folder> output=<folder>"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise ValueError(f"{folder} has a config.json that cannot be read: {one_line(error)}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in model_types:
        names = " or ".join(model_types)
        raise ValueError(f"{folder} holds a model of type {found}; only {names} can be loaded")
    return dict(config)


def read_sizes(config: dict[str, Any], names: dict[str, str], folder: Path) -> dict[str, int]:
    """Return the sizes of a `config.json` under this project's names.

    Args:
        config: contents of the file.
        names: names in the file by this project's.
        folder: where it lies, for messages.

    Raises:
        ValueError: a size is missing, no integer or below 1.
    """
    sizes = {}
    for ours, theirs in names.items():
        size = config.get(theirs)
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{folder} has {theirs}={size} in its config.json, which must be >= 1")
        sizes[ours] = size
    return sizes


def list_weights(place: Path) -> list[Path]:
    """Return the files of a folder's weights; a file stands for itself.

    Raises:
        ValueError: there are none, or one of several is missing.
    """
    if place.is_file():
        return [place]
    first = next((place / name for name in WEIGHTS if (place / name).is_file()), None)
    if first is None:
        raise ValueError(f"{place} has no model.safetensors, no pytorch_model.bin and no index of either; fetch them")
    if first.suffix != ".json":
        return [first]
    try:
        names = sorted(set(json.loads(first.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} has a {first.name} that cannot be read: {one_line(error)}") from error
    files = [place / Path(str(name)).name for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ValueError(f"{place} has no {missing[0]}, which its {first.name} names; fetch it")
    return files


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder by name; of a pickle, nothing but tensors is loaded.

    Raises:
        ValueError: a file is missing or cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for path in list_weights(folder):
        if is_lfs_pointer(path):
            raise ValueError(f"{folder} has a {path.name} that is a Git LFS pointer; run git lfs pull in it")
        try:
            tensors |= load_file(path) if path.suffix == ".safetensors" else load_pickle(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{folder} has a {path.name} that cannot be read: {one_line(error)}") from error
    return tensors


def load_pickle(path: Path) -> Any:  # what the file holds: tensors, and plain containers of them
    """Load a file of torch.save without running code of it.

    Raises:
        ValueError: it is damaged, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(one_line(error)[:200]) from error


def hash_weights(place: Path) -> str:
    """Return the SHA-256 of a folder's weights: of the only file, or of the hashes of all."""
    hashes = [sha256_file(path) for path in list_weights(place)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()
