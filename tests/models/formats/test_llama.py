"""Weights to and from Hugging Face's Llama, against transformers itself, from random weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from src.models.formats.llama import find_difference_from_llama, load_llama, write_llama
from src.models.formats.pretrained import load_weights
from src.models.gpt import GPT
from tests.support import composed_settings, jitter, tiny_gpt, tokens

transformers = pytest.importorskip("transformers", reason="a development dependency")


def llama(embedding: str = "untied", **keys: Any) -> GPT:
    sizes = {"n_head": 4, "n_kv_head": 2, "positions": "rope", "rope_base": 500.0}
    return jitter(tiny_gpt(norm="rmsnorm", mlp="swiglu", embedding=embedding, **{**sizes, **keys}))


@pytest.mark.parametrize("embedding", ["untied", "tied"])
@pytest.mark.parametrize("n_kv_head", [4, 2])
def test_both_directions_give_the_same_logits(embedding: str, n_kv_head: int, tmp_path: Path) -> None:
    gpt = llama(embedding, n_kv_head=n_kv_head)
    write_llama(gpt, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=2e-5)
    with torch.no_grad():
        for param in theirs.parameters():
            param += 0.1 * torch.randn(param.shape, generator=torch.Generator().manual_seed(3))
    theirs.save_pretrained(tmp_path / "changed")
    load_weights(gpt, tmp_path / "changed")  # as init_from does
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=2e-5)


def test_what_is_no_llama_is_an_error_that_names_the_part(tmp_path: Path) -> None:
    cases = {
        "qk_norm": "rms",
        "rope_scale": 2.0,
        "logit_softcap": 15.0,
        "attention_scale": "inverse",
        "norm_placement": "sandwich",
        "window_pattern": "SL",
    }
    for key, value in cases.items():
        assert find_difference_from_llama(llama(**{key: value})) == f"model.{key}={value}"
    with pytest.raises(ValueError, match=r"this model differs in residual\.gate_L"):
        write_llama(jitter(tiny_gpt("rezero", norm="rmsnorm", mlp="swiglu", positions="rope")), tmp_path)


def test_another_size_is_an_error(tmp_path: Path) -> None:
    write_llama(llama(), tmp_path)
    with pytest.raises(ValueError, match=r"has num_hidden_layers=3 in its config.json, this model 2"):
        load_llama(llama(n_layer=2), tmp_path)


def test_the_shipped_sizes_are_a_llama() -> None:
    settings = composed_settings("model=llama_small")
    names = [getattr(part, "func", part).__name__ for part in (settings.norm, settings.embedding, settings.mlp)]
    assert names == ["RMSNorm", "UntiedEmbedding", "SwiGLU"]
    assert (settings.model.positions, settings.model.n_kv_head) == ("rope", 4)
