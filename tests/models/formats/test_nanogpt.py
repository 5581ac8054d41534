"""Weights of nanoGPT load by name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.files import sha256_file
from src.models.formats.hub import identify
from src.models.formats.nanogpt import load_nanogpt
from src.models.formats.pretrained import from_pretrained, load_weights
from src.models.gpt import GPT
from tests.support import jitter, tiny_gpt, tokens


def test_nanogpts_weights_load_by_name_and_wrong_shapes_are_an_error() -> None:
    gpt = jitter(tiny_gpt())
    theirs = {f"transformer.{key.removeprefix('embedding.')}": value.clone() for key, value in gpt.state_dict().items()}
    theirs["lm_head.weight"] = theirs["transformer.wte.weight"]
    other = tiny_gpt(seed=3)
    load_nanogpt(other, theirs)
    assert torch.equal(other(tokens()), gpt(tokens()))
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_nanogpt(tiny_gpt(n_embd=32), theirs)


def save_checkpoint(gpt: GPT, path: Path, **changes: Any) -> None:
    """Write a checkpoint as nanoGPT's train.py does (the keys of `checkpoint` and of `model_args` there)."""
    theirs = {f"transformer.{key.removeprefix('embedding.')}": value for key, value in gpt.state_dict().items()}
    weights = {**theirs, "lm_head.weight": theirs["transformer.wte.weight"]}
    sizes = {key: getattr(gpt.config, key) for key in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
    checkpoint = {
        "model": {f"_orig_mod.{key}": value for key, value in weights.items()},
        "optimizer": torch.optim.AdamW(gpt.parameters()).state_dict(),
        "model_args": {**sizes, "bias": gpt.config.bias, "dropout": 0.0},
        "iter_num": 5,
        "best_val_loss": torch.tensor(3.0),
        "config": {"dataset": "shakespeare_char"},
    }
    torch.save({**checkpoint, **changes}, path)


@pytest.mark.parametrize("bias", [True, False])
def test_a_checkpoint_of_nanogpt_is_read(bias: bool, tmp_path: Path) -> None:
    sent = jitter(tiny_gpt(bias=bias))
    save_checkpoint(sent, tmp_path / "ckpt.pt")
    assert torch.equal(from_pretrained(tmp_path / "ckpt.pt")(tokens()), sent(tokens()))
    gpt = tiny_gpt(bias=bias, seed=5)
    load_weights(gpt, tmp_path)  # the folder out_dir of its training
    assert torch.equal(gpt(tokens()), sent(tokens()))
    assert identify(tmp_path)["sha256"] == sha256_file(tmp_path / "ckpt.pt")
    with pytest.raises(
        ValueError, match=r"^init_from=.*ckpt\.pt has model\.n_layer=3, this model 2; give model\.n_layer"
    ):
        load_weights(tiny_gpt(n_layer=2, bias=bias), tmp_path)


def test_another_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match=r"not a checkpoint of nanoGPT.*branch_from=<run folder>"):
        load_weights(tiny_gpt(), path)
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of nanoGPT"):
        load_weights(tiny_gpt(), path)
    save_checkpoint(tiny_gpt(), path, model={})
    with pytest.raises(
        ValueError, match=r"embedding\.wte\.weight of shape missing; by its model_args it is \[64, 16\]"
    ):
        load_weights(tiny_gpt(), path)
