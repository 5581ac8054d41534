"""Weights to and from Hugging Face's Llama, against transformers itself, from random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from src.models.config import GPTConfig
from src.models.formats.llama import find_difference_from_llama
from src.models.formats.llama_folder import load_llama, read_llama, write_llama
from src.models.formats.pretrained import from_pretrained, load_weights, write_pretrained
from src.models.formats.recipe import Recipe
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


ROTATIONS = [
    {"rope_scale": 2.0},
    {"rope_scaling": "llama3", "rope_scale": 8.0, "rope_original": 6, "rope_low_turns": 0.5},
]


@pytest.mark.parametrize("rope", ROTATIONS)
def test_scaled_rotations_give_the_same_logits(rope: dict[str, Any], tmp_path: Path) -> None:
    gpt = llama(**rope)
    write_llama(gpt, tmp_path)
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=2e-5)
    assert (gpt(tokens()) - llama()(tokens())).abs().max() > 1e-2  # the rotations matter
    assert torch.equal(from_pretrained(tmp_path)(tokens()), gpt(tokens()))


def test_an_export_of_a_llama_is_a_llama(tmp_path: Path) -> None:
    gpt = llama()
    assert write_pretrained(gpt, Recipe({}, {}, 0, None, None, {}), tmp_path, end_of_text=5) == "llama"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(theirs) is transformers.LlamaForCausalLM
    assert theirs.config.eos_token_id == 5
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=2e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_of_transformers_in_shards_is_read_with_its_sizes(tied: bool, tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 12}
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=tied, rms_norm_eps=1e-3)
    theirs = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for param in theirs.parameters():
            param += 0.1 * torch.randn(param.shape, generator=torch.Generator().manual_seed(3))
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    gpt = from_pretrained(tmp_path)
    assert (gpt.config.n_kv_head, gpt.config.positions, gpt.get_submodule("ln_f").eps) == (2, "rope", 1e-3)
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=2e-5)


def rewrite(folder: Path, **keys: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


def test_the_keys_of_transformers_4_state_the_same_rotations(tmp_path: Path) -> None:
    write_llama(llama(), tmp_path)
    old = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    old |= {"original_max_position_embeddings": 8192}
    rewrite(tmp_path, rope_parameters=None, rope_theta=7e4, rope_scaling=old, num_key_value_heads=None)
    with pytest.raises(ValueError, match=r"has model\.layers\.0\.self_attn\.k_proj\.weight of shape"):
        read_llama(tmp_path)
    rewrite(tmp_path, num_key_value_heads=2)
    config = GPTConfig(**read_llama(tmp_path)[0])
    assert (config.rope_base, config.rope_scaling, config.rope_scale) == (7e4, "llama3", 8.0)
    assert (config.rope_original, config.rope_low_turns, config.rope_high_turns) == (8192, 1.0, 4.0)


def test_all_that_is_not_supported_is_named_at_once(tmp_path: Path) -> None:
    write_llama(llama(), tmp_path)
    rope = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}
    rewrite(tmp_path, attention_bias=True, hidden_act="gelu", head_dim=8, rope_parameters=rope)
    words = (
        r"attention_bias=True, hidden_act=gelu, head_dim=8 \(.* is 4\), rope_type=yarn in its config.json, which is not"
    )
    with pytest.raises(ValueError, match=words):
        from_pretrained(tmp_path)


def test_what_is_no_llama_is_an_error_that_names_the_part(tmp_path: Path) -> None:
    cases = {
        "qk_norm": "rms",
        "logit_softcap": 15.0,
        "attention_scale": "inverse",
        "norm_placement": "sandwich",
        "window_pattern": "SL",
    }
    for key, value in cases.items():
        assert find_difference_from_llama(llama(**{key: value})) == f"model.{key}={value}"
    assert find_difference_from_llama(tiny_gpt(norm="rmsnorm", mlp="gelu", positions="rope")) == "h.0.mlp.c_gate.weight"
    with pytest.raises(ValueError, match=r"this model differs in residual\.gate_L"):
        write_llama(jitter(tiny_gpt("rezero", norm="rmsnorm", mlp="swiglu", positions="rope")), tmp_path)


def test_all_differences_are_named_with_the_overrides_that_end_them(tmp_path: Path) -> None:
    write_llama(llama("tied", rope_scaling="llama3", rope_original=9), tmp_path)
    gpt = llama(n_layer=2, n_kv_head=4)
    with pytest.raises(ValueError, match=r"^init_from=.* has model\.n_layer=3, this model 2; .*; give ") as caught:
        load_weights(gpt, tmp_path)
    overrides = "model.n_layer=3 model.rope_scaling=llama3 model.rope_original=9 model.n_kv_head=2 embedding=tied"
    assert str(caught.value).endswith(f"; give {overrides}")
    load_llama(llama("tied", rope_scaling="llama3", rope_original=9), tmp_path)


def test_the_shipped_sizes_are_a_llama() -> None:
    settings = composed_settings("model=llama_small")
    names = [getattr(part, "func", part).__name__ for part in (settings.norm, settings.embedding, settings.mlp)]
    assert names == ["RMSNorm", "UntiedEmbedding", "SwiGLU"]
    assert (settings.model.positions, settings.model.n_kv_head) == ("rope", 4)
