"""Code that an export carries: which files, what they import, and that it computes what the model computes.

Covers `modules.py` too.
"""

import ast
import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.models.formats.portable import bundle
from src.models.formats.portable.bundle import AUTO_MAP, build_files, find_targets
from src.models.formats.portable.modules import read_module
from src.models.formats.recipe import ROOMS
from src.models.gpt import GPT
from tests.models.formats.test_pretrained import EVERY, recipe, trained
from tests.support import option, options, tokens

pytest.importorskip("transformers", reason="a development dependency")


def plain_options(room: str) -> dict[str, Any]:
    """Return the shipped options of a room as plain values."""
    return {name: OmegaConf.to_container(option(room, name)) for name in options(room)}


MHC = ["src.embedding.tied.TiedEmbedding", "src.norm.layernorm.LayerNorm", "src.residual.mhc.ManifoldHyperConnections"]
LLAMA3 = {"positions": "rope", "rope_scaling": "llama3", "rope_scale": 8.0, "rope_original": 6}
ALL = sorted({name for room in ROOMS for name in find_targets(plain_options(room))})


def imports(text: str) -> set[tuple[int, str]]:
    """Return the level and the first part of every import of a file."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {(0, alias.name.partition(".")[0]) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.level, str(node.module).partition(".")[0]))
    return found


@pytest.fixture(scope="module")
def union(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Package with the code of all options at once, imported without transformers' loader."""
    folder = tmp_path_factory.mktemp("union") / "reslab_union"
    folder.mkdir()
    for name, text in build_files([*ALL, "src.residual.composed.Composed"]).items():
        (folder / name).write_text(text)
    (folder / "__init__.py").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder.parent)
        yield importlib.import_module("reslab_union.modeling_reslab")
    for name in [name for name in sys.modules if name.startswith("reslab_union")]:
        del sys.modules[name]


def load(union: ModuleType, gpt: GPT, rooms: dict[str, str], **sizes: Any) -> Any:
    """Build the carried model with the weights of `gpt`."""
    sent = recipe(rooms, **sizes)
    config = union.ReslabConfig(sent.model, sent.rooms, sent.seed, sent.step, sent.max_steps, sent.run)
    model = union.ReslabForCausalLM(config).eval()
    model.gpt.load_state_dict(gpt.state_dict())
    return model


@pytest.mark.parametrize(("room", "name"), EVERY)
def test_the_carried_code_of_every_option_computes_the_same_logits(union: ModuleType, room: str, name: str) -> None:
    sizes = {"n_layer": 4} if room in ("recurrence", "residual") else {}
    gpt = trained({room: name}, **sizes)
    model = load(union, gpt, {room: name}, **sizes)
    with torch.no_grad():
        assert torch.allclose(model(tokens()).logits, gpt(tokens()), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "sizes", [{"positions": "rope"}, {"norm_placement": "sandwich"}, {"bias": True}, {"logit_softcap": 0.5}, LLAMA3]
)
def test_sizes_of_the_trunk_are_carried(union: ModuleType, sizes: dict[str, Any]) -> None:
    gpt = trained({"residual": "x0_blend"}, **sizes)
    with torch.no_grad():
        found = load(union, gpt, {"residual": "x0_blend"}, **sizes)(tokens()).logits
        assert torch.allclose(found, gpt(tokens()), atol=1e-5, rtol=0)


def test_gradients_are_the_models_own(union: ModuleType) -> None:
    for name in ("mhc", "attnres"):
        gpt = trained({"residual": name})
        model = load(union, gpt, {"residual": name})
        model(tokens(), labels=tokens()).loss.backward()
        torch.nn.functional.cross_entropy(gpt(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
        for (key, ours), theirs in zip(gpt.named_parameters(), model.gpt.parameters(), strict=True):
            ours_grad, theirs_grad = (torch.zeros_like(p) if p.grad is None else p.grad for p in (ours, theirs))
            assert torch.allclose(ours_grad, theirs_grad, atol=1e-5), key


def test_files_import_one_another_torch_and_transformers_alone() -> None:
    files = build_files(ALL)
    outside = {name for text in files.values() for level, name in imports(text) if level == 0}
    assert outside - sys.stdlib_module_names == {"torch", "transformers"}
    assert outside.isdisjoint({"ctypes", "subprocess", "importlib"})
    inside = {(level, name) for text in files.values() for level, name in imports(text) if level > 0}
    assert inside <= {(1, name.removesuffix(".py")) for name in files}


def test_a_folder_has_the_definitions_of_its_own_model() -> None:
    files = build_files(MHC)
    assert {f"{entry.partition('.')[0]}.py" for entry in AUTO_MAP.values()} < files.keys()
    assert "residual_mhc.py" in files
    assert not [name for name in files if "depth_attention" in name or "triton" in name or "cpp" in name]
    assert "def read_mhc(" in files["kernels_hyper_streams_mhc.py"]
    assert "_CppRead" not in files["kernels_hyper_streams_mhc.py"]
    for text in files.values():
        assert "# Copyright the reslab authors. Licensed under the Apache License, Version 2.0.\n" in text[:200]


def test_files_are_the_same_each_time() -> None:
    first = build_files(MHC)
    read_module.cache_clear()
    assert build_files(reversed(MHC)) == first


def test_models_of_other_code_have_configuration_files_that_differ() -> None:
    first, second = (
        build_files([*MHC[:2], part])["configuration_reslab.py"] for part in (MHC[2], "src.residual.gpas.GPAS")
    )
    assert first.splitlines()[1:] == second.splitlines()[1:]
    assert first != second


def test_a_definition_that_cannot_be_carried_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match="mhc: _mhc_read imports in a function, which an export cannot carry"):
        bundle._Bundle([("kernels.hyper_streams.mhc", "_mhc_read")])
    with pytest.raises(ValueError, match=r"residual\.mhc neither defines nor imports Missing"):
        bundle._Bundle([("residual.mhc", "Missing")])
    with pytest.raises(ValueError, match=r"residual\.none is not a module of this project"):
        read_module("residual.none")
