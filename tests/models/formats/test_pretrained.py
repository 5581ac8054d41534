"""Round trip of every shipped option through an exported folder.

Covers `parts.py` too.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from src.models.formats.pretrained import from_pretrained, load_weights, read_pretrained, write_pretrained
from src.models.formats.recipe import ROOMS, Recipe
from src.models.gpt import GPT
from tests.support import SIZES, jitter, option, options, tiny_gpt, tokens

EVERY = [(room, name) for room in ROOMS for name in options(room)]
EVERY += [("residual", name) for name in ("lns+resformer", "prores+hyperconn")]
STEP, MAX_STEPS = 2, 10


def recipe(rooms: dict[str, str], seed: int = 0, **sizes: Any) -> Recipe:
    """Return the recipe of `tiny_gpt` with these options."""
    names = {"residual": "vanilla", "norm": "layernorm", "embedding": "tied", "recurrence": "none", **rooms}
    plain: dict[str, Any] = {room: OmegaConf.to_container(option(room, name)) for room, name in names.items()}
    return Recipe({**SIZES, **sizes}, plain, seed, STEP, MAX_STEPS, {"name": "tiny"})


def trained(rooms: dict[str, str], **sizes: Any) -> GPT:
    """Build a jittered model in the middle of its schedule."""
    gpt = jitter(tiny_gpt(**rooms, **sizes)).eval()
    gpt.follow(STEP - 1, MAX_STEPS)
    return gpt


@pytest.mark.parametrize(("room", "name"), EVERY)
def test_every_shipped_option_round_trips_bit_for_bit(room: str, name: str, tmp_path: Path) -> None:
    sizes = {"n_layer": 4} if room in ("recurrence", "residual") else {}
    gpt = trained({room: name}, **sizes)
    kind = write_pretrained(gpt, recipe({room: name}, **sizes), tmp_path)
    before = torch.get_rng_state()
    back = from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not back.training
    assert torch.equal(back(tokens()), gpt(tokens()))
    assert back.state_dict().keys() == gpt.state_dict().keys()
    native = {"vanilla", "layernorm", "tied", "none", "gelu", "prores_block"}  # the last is whole in evaluation
    assert name in native or kind == "reslab"
    assert name not in native or kind == "gpt2"
    names = {p.name for p in tmp_path.iterdir() if kind == "gpt2" or p.suffix != ".py"}
    assert names == {"config.json", "model.safetensors"}


def test_a_loaded_schedule_is_at_the_step_of_the_weights(tmp_path: Path) -> None:
    rooms = {"residual": "prores"}
    gpt = trained(rooms)
    write_pretrained(gpt, recipe(rooms), tmp_path)
    first = trained(rooms)
    first.follow(0, MAX_STEPS)  # as it was built
    assert not torch.equal(first(tokens()), gpt(tokens()))
    assert torch.equal(from_pretrained(tmp_path)(tokens()), gpt(tokens()))


@pytest.mark.parametrize("step", [1, 5, 10])
@pytest.mark.parametrize(("room", "name"), [("residual", "prores"), ("recurrence", "mini")])
def test_schedules_and_visits_load_at_the_exported_step(room: str, name: str, step: int, tmp_path: Path) -> None:
    gpt = trained({room: name}, n_layer=4)
    gpt.follow(step - 1, MAX_STEPS)
    sent = dataclasses.replace(recipe({room: name}, n_layer=4), step=step)
    write_pretrained(gpt, sent, tmp_path)
    back = from_pretrained(tmp_path)
    assert torch.equal(back(tokens()), gpt(tokens()))
    assert back.active_sites == gpt.active_sites


def test_a_strategy_that_equals_gpt2_after_its_warm_up_is_exported_as_gpt2(tmp_path: Path) -> None:
    gpt = trained({"residual": "prores"})
    gpt.follow(MAX_STEPS - 1, MAX_STEPS)
    over = dataclasses.replace(recipe({"residual": "prores"}), step=MAX_STEPS)
    assert write_pretrained(gpt, over, tmp_path) == "gpt2"
    assert torch.equal(from_pretrained(tmp_path)(tokens()), gpt(tokens()))


def test_a_gpt2_folder_of_transformers_loads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 12, "vocab_size": 64}
    ends = {"bos_token_id": None, "eos_token_id": None}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **ends, layer_norm_epsilon=1e-3)).eval()
    theirs.save_pretrained(tmp_path)
    assert torch.allclose(from_pretrained(tmp_path)(tokens()), theirs(tokens()).logits, atol=1e-5)


def test_load_weights_reads_both_formats_and_rejects_other_shapes(tmp_path: Path) -> None:
    for name in ("vanilla", "x0_blend"):
        rooms = {"residual": name}
        sent = trained(rooms)
        (tmp_path / name).mkdir()
        write_pretrained(sent, recipe(rooms), tmp_path / name)
        gpt = tiny_gpt(name, seed=5)
        load_weights(gpt, tmp_path / name)
        assert torch.equal(gpt(tokens()), sent(tokens()))
    with pytest.raises(ValueError, match=r"residual\.\w+_L is \[3\] there, missing by the configuration; give"):
        load_weights(tiny_gpt(), tmp_path / "x0_blend")


def test_the_folder_holds_plain_values_and_the_identity_of_its_run(tmp_path: Path) -> None:
    rooms = {"residual": "hyperconn"}
    sent = recipe(rooms)
    write_pretrained(trained(rooms), sent, tmp_path)
    assert read_pretrained(tmp_path)[0] == sent
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rooms"]["residual"]["_target_"] == "src.residual.hyperconn.HyperConnections"
    assert (config["step"], config["max_steps"], config["run"]) == (STEP, MAX_STEPS, {"name": "tiny"})
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o644}


def test_reading_a_folder_runs_no_code_of_it(tmp_path: Path) -> None:
    rooms = {"residual": "mhc"}
    sent = trained(rooms)
    write_pretrained(sent, recipe(rooms), tmp_path)
    for file in tmp_path.glob("*.py"):
        file.write_text("raise SystemExit('ran')")
    gpt = tiny_gpt("mhc", seed=5)
    load_weights(gpt, tmp_path)
    assert torch.equal(from_pretrained(tmp_path)(tokens()), sent(tokens()))
    assert torch.equal(gpt(tokens()), sent(tokens()))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "reslab"])
def test_generation_never_selects_an_id_that_the_tokenizer_lacks(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    if kind == "llama":
        rooms = {"norm": "rmsnorm", "embedding": "untied", "mlp": "swiglu"}
    else:
        rooms = {"residual": "x0_blend" if kind == "reslab" else "vanilla"}
    sizes = {"positions": "rope"} if kind == "llama" else {}
    gpt = trained(rooms, **sizes)
    with torch.no_grad():
        gpt.embedding.get_lm_head_weight()[40:] *= 50  # their logits are the largest, and the lowest
    assert write_pretrained(gpt, recipe(rooms, **sizes), tmp_path, 5, 40) == kind
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings == {"bos_token_id": 5, "eos_token_id": 5, "suppress_tokens": list(range(40, 64))}
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    torch.manual_seed(0)
    ids = model.generate(torch.full((64, 1), 7), do_sample=True, max_new_tokens=4, pad_token_id=5)
    assert ids.max() < 40


def test_a_vocabulary_without_padding_needs_no_settings_of_generation(tmp_path: Path) -> None:
    write_pretrained(trained({}), recipe({}), tmp_path, 5, 64)
    assert not (tmp_path / "generation_config.json").exists()
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 5


def edit(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in changes.items():
            room, nested, _ = key.partition("__")
            if nested:
                config["rooms"][room] = value
            elif value is None:
                del config[key]
            else:
                config[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def cut(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "ln_f.weight"}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (edit(residual__={"_target_": "os.system"}), "names os.system for residual, which is not a class of"),
        (
            edit(residual__={"_target_": "src.norm.layernorm.LayerNorm"}),
            "for residual, which is not a class of",
        ),
        (edit(residual__={"_target_": "src.residual.base.importlib"}), "which is not a class of"),
        (edit(residual__={"_target_": "src.residual.no_such.Thing"}), "which is not a class of"),
        (
            edit(residual__={"_target_": "src.residual.x0_blend.X0Blend"}),
            "describes a model that cannot be built",
        ),
        (edit(model={**SIZES, "n_head": 3}), r"cannot be built: model\.n_embd must be a multiple"),
        (edit(model={**SIZES, "block_size": 13}), r"wpe\.weight is \[12, 16\] there, \[13, 16\] by"),
        (edit(seed=None), r"config\.json has no seed; export the run again"),
        (edit(rooms={}), r"config\.json has no rooms\.residual; export"),
        (edit(model_type="mamba"), "holds a model of type mamba; only reslab or gpt2 or llama"),
        (cut, r"ln_f\.weight is missing there, \[16\] by the configuration; give the configuration of"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99), "cannot be read"),
    ],
)
def test_a_damaged_folder_is_an_error_of_one_sentence_and_runs_no_code(
    damage: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    rooms = {"residual": "x0_blend"}
    write_pretrained(trained(rooms), recipe(rooms), tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=words) as caught:
        from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_of_another_package_is_not_exported_and_not_imported(tmp_path: Path) -> None:
    sent = recipe({"residual": "x0_blend"})
    sent.rooms["residual"]["_target_"] = "this.Zen"
    with pytest.raises(ValueError, match=r"this run names this\.Zen for residual.* put it there to export"):
        write_pretrained(trained({"residual": "x0_blend"}), sent, tmp_path)
    assert "this" not in sys.modules
    assert list(tmp_path.iterdir()) == []
