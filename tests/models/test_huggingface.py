"""Weights to and from Hugging Face's GPT-2, against transformers itself."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from src.models.huggingface import export_gpt2, load_gpt2
from tests.support import jitter, tiny_gpt, tokens

transformers = pytest.importorskip("transformers", reason="a development dependency")


def reference(**keys: Any) -> Any:
    config = transformers.GPT2Config(
        n_layer=3,
        n_head=2,
        n_embd=16,
        n_positions=12,
        vocab_size=64,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
        **{"activation_function": "gelu", **keys},
    )
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_an_exported_model_gives_transformers_the_same_logits(bias: bool, gelu: str, tmp_path: Path) -> None:
    gpt = jitter(tiny_gpt(bias=bias, gelu_approximate=gelu), 0.1)
    export_gpt2(gpt, tmp_path / "hub")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hub").eval()
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("activation", "gelu"), [("gelu", "none"), ("gelu_new", "tanh")])
def test_an_imported_model_gives_transformers_logits(activation: str, gelu: str, tmp_path: Path) -> None:
    theirs = reference(activation_function=activation)
    theirs.save_pretrained(tmp_path / "hub")
    gpt = tiny_gpt(bias=True, gelu_approximate=gelu)
    load_gpt2(gpt, tmp_path / "hub")
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=1e-5)


def test_there_and_back_is_the_same_bits(tmp_path: Path) -> None:
    gpt = jitter(tiny_gpt(bias=True))
    export_gpt2(gpt, tmp_path / "hub")
    back = tiny_gpt(bias=True, seed=5)
    load_gpt2(back, tmp_path / "hub")
    assert all(torch.equal(a, b) for a, b in zip(gpt.parameters(), back.parameters(), strict=True))


@pytest.mark.parametrize(
    "keys",
    [
        {"residual": "x0_blend"},
        {"residual": "hyperconn"},
        {"residual": "attnres"},
        {"norm": "rmsnorm"},
        {"embedding": "untied"},
    ],
)
def test_what_is_not_gpt2_is_not_exported(keys: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="residual=vanilla, norm=layernorm, embedding=tied only"):
        export_gpt2(tiny_gpt(**keys), tmp_path / "hub")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/mine").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        export_gpt2(tiny_gpt(), tmp_path / "hub")
    assert (tmp_path / "hub/mine").read_text() == "mine"


def test_other_sizes_are_named(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path / "hub")
    with pytest.raises(ValueError, match=r"has model\.n_layer=3, this model 2; give model\.n_layer=3"):
        load_gpt2(tiny_gpt(bias=True, n_layer=2), tmp_path / "hub")
    with pytest.raises(ValueError, match=r"give model\.gelu_approximate=none"):
        load_gpt2(tiny_gpt(bias=True, gelu_approximate="tanh"), tmp_path / "hub")
    with pytest.raises(ValueError, match=r"give model\.bias=true"):
        load_gpt2(tiny_gpt(bias=False), tmp_path / "hub")
    with pytest.raises(ValueError, match="has no weights for residual"):
        load_gpt2(tiny_gpt("x0_blend", bias=True), tmp_path / "hub")


def test_what_is_no_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_gpt2(tiny_gpt(), tmp_path)
    export_gpt2(tiny_gpt(), tmp_path / "hub")
    raw = (tmp_path / "hub/model.safetensors").read_bytes()
    (tmp_path / "hub/model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        load_gpt2(tiny_gpt(), tmp_path / "hub")
    (tmp_path / "hub/config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "hub/model.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match="holds a llama model"):
        load_gpt2(tiny_gpt(), tmp_path / "hub")
