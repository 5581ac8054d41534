"""Small models from the shipped configurations."""

import copy
import functools
import importlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src.files import atomic_folder
from src.models.config import GPTConfig
from src.models.formats.folder import require_empty
from src.models.formats.huggingface import write_gpt2
from src.models.gpt import GPT
from src.models.optim.adamw import AdamW
from src.models.optim.base import OptimizerConfig
from src.settings.read import Settings, read_settings

ROOT = Path(__file__).resolve().parents[1]
#: Compositions of residual strategies: those of papers, and one of each kind of part.
COMPOSITIONS = [
    *("lns+resformer", "satformer+lns", "prores+attnres", "prores+hyperconn", "prores+deepnorm", "resformer+hyperconn"),
    *("resformer+attnres", "stream_scaling+hyperconn", "stream_scaling+mhc", "stream_scaling+mhc_lite"),
    *("layerscale+denseformer", "prores+lns+resformer"),
]
SIZES: dict[str, Any] = {
    "n_layer": 3,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 12,
    "vocab_size": 64,
    "bias": False,
    "dropout": 0.0,
    "gelu_approximate": "none",
    "norm_placement": "pre",
    "positions": "learned",
}


def adamw(lr: float = 1e-3, grad_clip: float = 1.0) -> OptimizerConfig:
    """Build the reference protocol's AdamW with a learning rate."""
    return OptimizerConfig(lr, lr / 10, 0, 0.1, grad_clip, partial(AdamW, betas=(0.9, 0.95), eps=1e-8))


def options(group: str) -> list[str]:
    """Return the shipped options of a config group."""
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def option(group: str, name: str) -> DictConfig:
    """Return one shipped option, its own keys merged over those of its defaults list; `a+b` is a composition."""
    return copy.deepcopy(_read_option(group, name))


@functools.cache
def _read_option(group: str, name: str) -> DictConfig:
    if "+" in name:
        parts = {part: _read_option(group, part) for part in name.split("+")}
        target = {"_target_": "src.residual.composed.Composed", "_partial_": True, "_convert_": "all"}
        return OmegaConf.create({**target, "parts": parts})
    own = OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml")
    names = [name for name in own.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    bases = [_read_option(group, base) for base in names]
    config = OmegaConf.merge(*bases, own)
    assert isinstance(config, DictConfig)
    return config


def component(group: str, name: str, **changes: Any) -> Any:
    """Instantiate an option with some of its keys changed."""
    return instantiate({**_read_option(group, name), **changes})


def composed_settings(*overrides: str) -> Settings:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return read_settings(compose("config", overrides=["name=x", "trainer=cpu", *overrides]))


def tiny_gpt(
    residual: str = "vanilla",
    norm: str = "layernorm",
    embedding: str = "tied",
    recurrence: str = "none",
    mlp: str = "gelu",
    *,
    seed: int = 0,
    strategy: dict[str, Any] | None = None,
    visits: dict[str, Any] | None = None,
    **sizes: Any,
) -> GPT:
    """Build a model of three layers and 16 channels from shipped options."""
    return GPT(
        GPTConfig(**{**SIZES, **sizes}),
        residual=component("residual", residual, **(strategy or {})),
        norm=component("norm", norm),
        embedding=component("embedding", embedding),
        recurrence=component("recurrence", recurrence, **(visits or {})),
        mlp=component("mlp", mlp),
        seed=seed,
    )


def start_at_once(recurrence: str, residual: str) -> dict[str, Any]:
    """Return keys of a delayed recurrence that starts at step 0, if the strategy cannot leave visits out."""
    delayed = "start_step" in option("recurrence", recurrence)
    return {"start_fraction": None, "start_step": 0} if delayed and not _may_skip(residual) else {}


@functools.cache
def _may_skip(residual: str) -> bool:
    return bool(tiny_gpt(residual).residual.may_skip)


@functools.cache
def has_one_stream(residual: str) -> bool:
    """Return whether a strategy's state is one stream, which recurrences with an adapter need."""
    try:
        tiny_gpt(residual, recurrence="looped")
    except ValueError as error:
        if "whose state is not one stream" not in str(error):
            raise
        return False
    return True


def jitter(gpt: GPT, scale: float = 0.3) -> GPT:
    """Add noise to every parameter, since a fault behind a zero gate is invisible at init."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in gpt.parameters():
            param += scale * torch.randn(param.shape, generator=generator, dtype=param.dtype) * 0.5
    return gpt


def tokens(batch: int = 3, length: int = 12, vocab_size: int = 64, seed: int = 0) -> Tensor:
    """Draw random token ids [batch, length]."""
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def module_of(config: DictConfig) -> Any:
    """Return the module that defines an option's class."""
    return importlib.import_module(str(config._target_).rpartition(".")[0])


def class_of(config: DictConfig) -> Any:
    """Return the class that an option names."""
    return get_object(str(config._target_))


def export_gpt2(gpt: GPT, folder: Path) -> None:
    """Write a model that is GPT-2 as a new folder in Hugging Face's format, as task=export does."""
    require_empty(folder)
    with atomic_folder(folder) as part:
        write_gpt2(gpt, part)
