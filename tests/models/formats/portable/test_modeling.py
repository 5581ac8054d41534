"""Exported folders in transformers, through the code that they carry.

`test_bundle.py` compares the logits of every option; here transformers itself loads folders. Covers `configuration.py`
too.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from src.models.formats.pretrained import from_pretrained, write_pretrained
from src.models.gpt import GPT
from tests.models.formats.test_pretrained import EVERY, recipe, trained
from tests.support import tokens

transformers = pytest.importorskip("transformers", reason="a development dependency")

#: One of each kind of operation and of each axis.
FAMILIES = [
    *(("residual", name) for name in ("attnres", "hyperconn", "lns+resformer", "prores")),
    *(("norm", "derf"), ("embedding", "bigram_hash"), ("recurrence", "looped")),
]
#: What a process without this project does with a folder.
ELSEWHERE = """
import importlib.util, json, sys
import torch
from transformers import AutoModelForCausalLM

assert all(importlib.util.find_spec(name) is None for name in ("src", "conf"))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
with torch.no_grad():
    logits = model(torch.tensor(json.loads(sys.argv[2]))).logits
assert not {name.partition(".")[0] for name in sys.modules} & {"src", "reslab"}
print(json.dumps(logits.tolist()))
"""


@pytest.fixture(scope="module", autouse=True)
def _own_cache_of_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the copies that transformers makes of a folder's code away from those of the user."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", [*sys.path])
        yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def export(gpt: GPT, rooms: dict[str, str], folder: Path, **sizes: Any) -> Path:
    folder.mkdir()
    write_pretrained(gpt, recipe(rooms, **sizes), folder)
    return folder


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def assert_loads_alike(room: str, name: str, folder: Path) -> None:
    sizes = {"n_layer": 4} if room in ("recurrence", "residual") else {}
    gpt = trained({room: name}, **sizes)
    model = load(export(gpt, {room: name}, folder, **sizes))
    with torch.no_grad():
        assert torch.allclose(model(tokens()).logits, gpt(tokens()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("room", "name"), FAMILIES)
def test_transformers_loads_an_export_with_the_same_logits(room: str, name: str, tmp_path: Path) -> None:
    assert_loads_alike(room, name, tmp_path / "hub")


@pytest.mark.stress
@pytest.mark.parametrize(("room", "name"), EVERY)
def test_transformers_loads_an_export_of_every_option(room: str, name: str, tmp_path: Path) -> None:
    assert_loads_alike(room, name, tmp_path / "hub")


def test_an_export_keeps_its_attention_windows(tmp_path: Path) -> None:
    windows = {"window_pattern": "SL", "window_size": 2}
    gpt = trained({}, **windows)
    model = load(export(gpt, {}, tmp_path / "hub", **windows))
    with torch.no_grad():
        assert torch.allclose(model(tokens()).logits, gpt(tokens()), atol=1e-5, rtol=0)
        assert not torch.allclose(gpt(tokens()), trained({})(tokens()), atol=1e-3, rtol=0)


def test_an_export_loads_where_this_project_is_not(tmp_path: Path) -> None:
    gpt = trained({"residual": "mhc"})
    folder = export(gpt, {"residual": "mhc"}, tmp_path / "hub")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", ELSEWHERE, str(folder), json.dumps(tokens().tolist())]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert torch.allclose(torch.tensor(json.loads(done.stdout)), gpt(tokens()), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Path]:
    """Return a model in the middle of its schedule, and its folder."""
    gpt = trained({"residual": "prores"})
    return gpt, export(gpt, {"residual": "prores"}, tmp_path_factory.mktemp("exported") / "hub")


def test_generation_is_greedy_decoding_beyond_the_longest_sequence(exported: tuple[GPT, Path]) -> None:
    gpt, folder = exported
    expected = tokens()[:, :9]
    with torch.no_grad():
        for _ in range(6):  # of 12 positions
            expected = torch.cat((expected, gpt(expected[:, -12:])[:, -1:].argmax(-1)), dim=1)
    every = torch.ones(3, 9, dtype=torch.long)
    found = load(folder).generate(
        tokens()[:, :9], attention_mask=every, max_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert torch.equal(found, expected)


def test_padding_before_and_after_a_sequence_changes_nothing(exported: tuple[GPT, Path]) -> None:
    gpt, folder = exported
    model = load(folder)
    mask_BT = torch.ones(3, 8, dtype=torch.long)
    mask_BT[1, :3] = 0
    mask_BT[2, 5:] = 0
    with torch.no_grad():
        logits = model(tokens()[:, :8], attention_mask=mask_BT).logits
        for row, kept in ((0, slice(8)), (1, slice(3, 8)), (2, slice(5))):
            assert torch.allclose(logits[row, kept], gpt(tokens()[row : row + 1, :8][:, kept])[0], atol=1e-5)
    mask_BT[0, 4] = 0
    with pytest.raises(ValueError, match="padding between tokens"):
        model(tokens()[:, :8], attention_mask=mask_BT)


def test_labels_give_the_mean_loss_of_the_next_tokens(exported: tuple[GPT, Path]) -> None:
    gpt, folder = exported
    model = load(folder)
    labels = tokens().clone()
    labels[:, -1] = -100
    with torch.no_grad():
        expected = gpt.loss(tokens()[:, :-2], tokens()[:, 1:-1])
        assert model(tokens(), labels=labels).loss.item() == pytest.approx(expected.item(), rel=1e-5)
        loss, logits = model(tokens(), labels=labels, return_dict=False)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert logits.shape == (3, 12, 64)
    with pytest.raises(ValueError, match="at most 12 tokens, got 13"):
        model(torch.zeros(1, 13, dtype=torch.long))


def test_the_configuration_has_the_sizes_by_the_names_of_transformers(exported: tuple[GPT, Path]) -> None:
    config = transformers.AutoConfig.from_pretrained(exported[1], trust_remote_code=True)
    sizes = (config.vocab_size, config.max_position_embeddings, config.hidden_size)
    assert (*sizes, config.num_hidden_layers, config.num_attention_heads) == (64, 12, 16, 3, 2)
    assert (config.step, config.max_steps, config.run) == (2, 10, {"name": "tiny"})


def test_what_transformers_saves_loads_there_and_here(exported: tuple[GPT, Path], tmp_path: Path) -> None:
    gpt, folder = exported
    load(folder).save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "saved")(tokens()), gpt(tokens()))
        assert torch.allclose(load(tmp_path / "saved")(tokens()).logits, gpt(tokens()), atol=1e-5, rtol=0)
