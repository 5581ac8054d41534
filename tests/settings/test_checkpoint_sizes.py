"""`model=from_checkpoint`: the configuration has the sizes and parts of the model that `init_from` names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.errors import UserError
from src.models.formats.llama_folder import write_llama
from src.models.formats.pretrained import load_weights
from src.settings.read import read_settings
from src.training.run import build_gpt
from tests.support import composed_settings, export_gpt2, jitter, tiny_gpt, tokens


def read(place: Path, *overrides: str) -> Any:
    return composed_settings("model=from_checkpoint", f"init_from={place}", *overrides)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.no_grad()
def test_a_model_of_the_sizes_loads_the_weights_and_resumes_without_them(kind: str, tmp_path: Path) -> None:
    if kind == "gpt2":
        gpt = jitter(tiny_gpt(bias=True, gelu_approximate="tanh"))
        export_gpt2(gpt, tmp_path / "hub")
    else:
        parts = {"norm": "rmsnorm", "embedding": "untied", "mlp": "swiglu"}
        gpt = jitter(tiny_gpt(**parts, positions="rope", n_kv_head=1))
        (tmp_path / "hub").mkdir()
        write_llama(gpt, tmp_path / "hub")
    settings = read(tmp_path / "hub")
    assert "from_checkpoint" not in settings.config["model"]
    assert settings.config["model"]["n_embd"] == 16
    ours = build_gpt(settings)
    load_weights(ours, tmp_path / "hub")
    assert torch.allclose(ours(tokens()), gpt(tokens()), atol=1e-5)
    for path in (tmp_path / "hub").iterdir():
        path.unlink()
    again = read_settings(OmegaConf.create(settings.config))  # type: ignore[arg-type]  # a mapping gives a DictConfig
    assert again.config == settings.config


def test_keys_beside_it_count(tmp_path: Path) -> None:
    export_gpt2(tiny_gpt(dropout=0.1), tmp_path / "hub")
    assert read(tmp_path / "hub").model.dropout == 0
    assert read(tmp_path / "hub", "model.dropout=0.2").model.dropout == 0.2


def test_without_a_model_it_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model=from_checkpoint needs init_from=<a folder by task=export, "):
        composed_settings("model=from_checkpoint")
    with pytest.raises(UserError, match=r"^init_from=.*none does not exist; give a folder"):
        read(tmp_path / "none")
