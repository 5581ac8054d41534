"""Weights to and from Hugging Face's GPT-2, against transformers itself.

Covers `folder.py` too.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.embedding.tied import TiedEmbedding
from src.models.config import GPTConfig
from src.models.formats.folder import hash_weights
from src.models.formats.huggingface import load_gpt2, read_gpt2, write_gpt2
from src.models.gpt import GPT
from src.norm.layernorm import LayerNorm
from src.residual.vanilla import Vanilla
from tests.support import SIZES, component, export_gpt2, jitter, tiny_gpt, tokens

transformers = pytest.importorskip("transformers", reason="a development dependency")


def reference(**keys: Any) -> Any:
    """Build a jittered model of transformers with the sizes of the tiny model."""
    sizes = {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 12, "vocab_size": 64}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    tokens_off = {"bos_token_id": None, "eos_token_id": None}
    config = transformers.GPT2Config(**{"activation_function": "gelu", **sizes, **off, **tokens_off, **keys})
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


def test_a_folder_gives_the_fields_and_weights_of_its_model(tmp_path: Path) -> None:
    theirs = reference(activation_function="gelu_new")
    theirs.save_pretrained(tmp_path / "hub")
    fields, weights = read_gpt2(tmp_path / "hub")
    assert fields == {**SIZES, "bias": True, "gelu_approximate": "tanh"}
    norm = partial(LayerNorm, eps=1e-5)
    gpt = GPT(GPTConfig(**fields), residual=Vanilla, norm=norm, embedding=TiedEmbedding, seed=0)
    gpt.load_state_dict(weights, strict=True)
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=1e-5)


def test_a_model_without_biases_is_exported_with_zeros_and_loads_without(tmp_path: Path) -> None:
    gpt = jitter(tiny_gpt())
    export_gpt2(gpt, tmp_path / "hub")
    biases = {k: v for k, v in load_file(tmp_path / "hub/model.safetensors").items() if k.endswith("bias")}
    assert len(biases) == 3 * 6 + 1
    assert not any(bias.any() for bias in biases.values())
    fields, weights = read_gpt2(tmp_path / "hub")
    assert fields == SIZES
    assert weights.keys() == gpt.state_dict().keys()
    for bias in (False, True):
        other = tiny_gpt(seed=5, bias=bias)
        load_gpt2(other, tmp_path / "hub")
        assert torch.equal(other(tokens()), gpt(tokens()))


def test_the_configuration_states_what_transformers_needs(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    write_gpt2(tiny_gpt(vocab_size=50257, n_embd=8, dropout=0.1), tmp_path / "large", 50256)
    export_gpt2(tiny_gpt(gelu_approximate="tanh"), tmp_path / "small")
    large, small = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("large", "small"))
    assert (large["bos_token_id"], large["eos_token_id"]) == (50256, 50256)
    assert (small["bos_token_id"], small["eos_token_id"]) == (None, None)
    assert (large["activation_function"], small["activation_function"]) == ("gelu", "gelu_new")
    assert (large["model_type"], large["architectures"]) == ("gpt2", ["GPT2LMHeadModel"])
    assert (large["n_positions"], large["layer_norm_epsilon"], large["tie_word_embeddings"]) == (12, 1e-5, True)
    assert large["resid_pdrop"] == large["embd_pdrop"] == large["attn_pdrop"] == 0.1


def test_another_eps_is_exported_and_required_when_loading(tmp_path: Path) -> None:
    norm = component("norm", "layernorm", eps=0.01)
    gpt = GPT(GPTConfig(**SIZES), residual=Vanilla, norm=norm, embedding=TiedEmbedding, seed=0)
    export_gpt2(jitter(gpt, 0.1), tmp_path / "hub")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hub").eval()
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"has norm\.eps=0\.01, this model 1e-05; give norm\.eps=0\.01"):
        load_gpt2(tiny_gpt(), tmp_path / "hub")


def test_an_export_changes_neither_random_state_nor_mode(tmp_path: Path) -> None:
    gpt = tiny_gpt(dropout=0.5).train()
    before = torch.get_rng_state()
    export_gpt2(gpt, tmp_path / "hub")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in gpt.modules())


def test_a_round_trip_keeps_all_bits(tmp_path: Path) -> None:
    gpt = jitter(tiny_gpt(bias=True))
    export_gpt2(gpt, tmp_path / "hub")
    back = tiny_gpt(bias=True, seed=5)
    load_gpt2(back, tmp_path / "hub")
    assert all(torch.equal(a, b) for a, b in zip(gpt.parameters(), back.parameters(), strict=True))


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/mine").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        export_gpt2(tiny_gpt(), tmp_path / "hub")
    with pytest.raises(ValueError, match="exists already"):
        export_gpt2(tiny_gpt(), tmp_path / "hub/mine")
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["hub", "hub/mine"]
    assert (tmp_path / "hub/mine").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    export_gpt2(tiny_gpt(), tmp_path / "empty")
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == ["config.json", "model.safetensors"]
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "empty").iterdir()} == {0o644}


def test_a_write_that_fails_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object, **_keys: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("src.models.formats.folder.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        export_gpt2(tiny_gpt(), tmp_path / "hub")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "value"), [("n_layer", 2), ("n_head", 4), ("n_embd", 32), ("block_size", 8), ("vocab_size", 65)]
)
def test_another_size_is_an_error_with_both_values(key: str, value: int, tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path / "hub")
    words = rf"has model\.{key}={SIZES[key]}, this model {value}; give model\.{key}={SIZES[key]}$"
    with pytest.raises(ValueError, match=words):
        load_gpt2(tiny_gpt(**{"bias": True, key: value}), tmp_path / "hub")


def test_another_activation_or_biases_are_an_error_with_the_key_to_give(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path / "hub")
    with pytest.raises(ValueError, match=r"give model\.gelu_approximate=none"):
        load_gpt2(tiny_gpt(bias=True, gelu_approximate="tanh"), tmp_path / "hub")
    with pytest.raises(ValueError, match=r"biases that are not zero .*; give model\.bias=true$"):
        load_gpt2(tiny_gpt(bias=False), tmp_path / "hub")


def test_all_differences_are_told_at_once_with_the_overrides_that_end_them(tmp_path: Path) -> None:
    reference(layer_norm_epsilon=1e-6).save_pretrained(tmp_path / "hub")
    gpt = tiny_gpt(n_layer=2, vocab_size=80, gelu_approximate="tanh", bias=False)
    words = r"has model\.n_layer=3, this model 2; .*; give model\.n_layer=3 model\.vocab_size=64 "
    with pytest.raises(ValueError, match=words + r"model\.gelu_approximate=none norm\.eps=1e-06 model\.bias=true$"):
        load_gpt2(gpt, tmp_path / "hub")


def save_shards(model: Any, folder: Path, suffix: str) -> None:
    """Save a model of transformers in two files and an index, as large ones are published."""
    model.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, index = ("model", "model.safetensors.index.json") if suffix == "safetensors" else (
        "pytorch_model", "pytorch_model.bin.index.json")  # fmt: skip
    names = {key: f"{stem}-0000{1 + i % 2}-of-00002.{suffix}" for i, key in enumerate(sorted(weights))}
    for name in set(names.values()):
        part = {key: value for key, value in weights.items() if names[key] == name}
        if suffix == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize("form", ["pytorch_model.bin", "shards.safetensors", "shards.bin"])
def test_weights_load_from_every_form_that_is_published(form: str, tmp_path: Path) -> None:
    theirs = reference()
    if form == "pytorch_model.bin":
        theirs.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / form)
    else:
        save_shards(theirs, tmp_path, form.removeprefix("shards."))
    gpt = tiny_gpt(bias=True)
    load_gpt2(gpt, tmp_path)
    assert torch.allclose(theirs(tokens()).logits, gpt(tokens()), rtol=0, atol=1e-5)
    assert len(hash_weights(tmp_path)) == 64
    if form.startswith("shards"):
        first = sorted(tmp_path.glob("*-00001-of-00002.*"))[0]
        first.unlink()
        with pytest.raises(ValueError, match=rf"has no {first.name}, which its .*index\.json names; fetch it"):
            load_gpt2(gpt, tmp_path)


class Evil:
    """A value whose unpickling would run code."""

    def __reduce__(self) -> Any:
        return exec, ("raise AssertionError('code of a checkpoint ran')",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("pytorch_model.bin", {"a": Evil()}, "has a pytorch_model.bin that cannot be read: Weights only load failed"),
        ("pytorch_model.bin", b"damaged", "has a pytorch_model.bin that cannot be read"),
        ("model.safetensors.index.json", b"{}", "has a model.safetensors.index.json that cannot be read"),
        (
            "model.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a Git LFS pointer; run git lfs pull",
        ),
    ],
)
def test_weights_that_cannot_be_read_are_one_sentence(name: str, content: object, words: str, tmp_path: Path) -> None:
    export_gpt2(tiny_gpt(), tmp_path / "hub")
    (tmp_path / "hub/model.safetensors").unlink()
    if isinstance(content, bytes):
        (tmp_path / "hub" / name).write_bytes(content)
    else:
        torch.save(content, tmp_path / "hub" / name)
    with pytest.raises(ValueError, match=words) as caught:
        load_gpt2(tiny_gpt(), tmp_path / "hub")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"tie_word_embeddings": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"n_inner": 32},
        {"activation_function": "relu"},
    ],
)
def test_a_switch_that_changes_the_function_is_an_error(keys: dict[str, Any], tmp_path: Path) -> None:
    reference(**keys).save_pretrained(tmp_path / "hub")
    ((key, value),) = keys.items()
    for read in (read_gpt2, partial(load_gpt2, tiny_gpt(bias=True))):
        with pytest.raises(ValueError, match=f"has {key}={value}, which is not supported here"):
            read(tmp_path / "hub")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("transformer.h.1.ln_2.bias", None, r"has no tensor h\.1\.ln_2\.bias"),
        (
            "transformer.wpe.weight",
            torch.zeros(11, 16),
            r"embedding\.wpe\.weight of shape \[11, 16\]; .*\[12, 16\]",
        ),
        ("lm_head.weight", torch.zeros(64, 16), "a tensor lm_head.weight, which is not tied"),
        (
            "transformer.h.0.crossattention.c_attn.bias",
            torch.zeros(1),
            "a tensor h.0.crossattention.c_attn.bias",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_an_error_with_its_name(
    key: str, value: Tensor | None, words: str, tmp_path: Path
) -> None:
    export_gpt2(tiny_gpt(), tmp_path / "hub")
    file = tmp_path / "hub/model.safetensors"
    others = {k: v for k, v in load_file(file).items() if k != key}
    save_file(others if value is None else {**others, key: value}, file)
    with pytest.raises(ValueError, match=words):
        read_gpt2(tmp_path / "hub")


def test_tensor_names_of_older_folders_load(tmp_path: Path) -> None:
    gpt = jitter(tiny_gpt())
    export_gpt2(gpt, tmp_path / "hub")
    file = tmp_path / "hub/model.safetensors"
    old = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
    save_file({**old, "h.0.attn.bias": torch.ones(1, 1, 12, 12), "lm_head.weight": old["wte.weight"].clone()}, file)
    other = tiny_gpt(seed=5)
    load_gpt2(other, tmp_path / "hub")
    assert torch.equal(other(tokens()), gpt(tokens()))


def write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (write("config.json", b'{"model_type": "llama"}'), "holds a model of type llama; only gpt2"),
        (write("config.json", b"[]"), "holds a model of type None; only gpt2"),
        (write("config.json", b"{"), r"a config\.json that cannot be read"),
        (write("config.json", b"\xff\xfe"), r"a config\.json that cannot be read"),
        (write("config.json", b'{"model_type": "gpt2", "n_layer": 3}'), "has n_head=None in its config.json"),
        (write("model.safetensors", b"\0" * 99), r"a model\.safetensors that cannot be read"),
    ],
)
def test_a_damaged_folder_is_an_error_of_one_sentence(
    damage: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    export_gpt2(tiny_gpt(), tmp_path / "hub")
    damage(tmp_path / "hub")
    with pytest.raises(ValueError, match=f"^{tmp_path}/hub .*{words}") as caught:
        load_gpt2(tiny_gpt(), tmp_path / "hub")
    assert "\n" not in str(caught.value)


def test_a_path_that_is_not_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("file", "nothing"):
        with pytest.raises(ValueError, match=f"{name} is not a folder; give a Hugging Face GPT-2 or Llama folder"):
            load_gpt2(tiny_gpt(), tmp_path / name)
