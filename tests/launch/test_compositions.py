"""Compositions on the command line: lists and bases become options, keys go to their parts."""

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.errors import UserError
from src.launch.compositions import name_compositions, register_compositions
from src.settings.compose import compose_config
from src.settings.read import read_settings
from tests.runs import SMALL, make_shards, result, run
from tests.support import ROOT


def composed(*overrides: str) -> Any:
    register_compositions()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose_config(["name=x", "trainer=cpu", *overrides])


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["residual=attnres", "seed=1"], ["residual=attnres", "seed=1"]),
        (["residual=[lns,resformer]"], ["residual=lns+resformer"]),
        (["residual=[lns, 'resformer']"], ["residual=lns+resformer"]),
        (["residual=[lns]"], ["residual=lns"]),
        (["-m", "residual=vanilla,[lns,resformer]"], ["-m", "residual=vanilla,lns+resformer"]),
        (["residual=prores", "residual.base=attnres"], ["residual=prores+attnres"]),
        (["residual=prores,lns", "residual.base=mhc,attnres"],
         ["residual=prores+mhc,prores+attnres,lns+mhc,lns+attnres"]),
        (["+residual.base=attnres", "residual=[prores,resformer]"], ["residual=prores+resformer+attnres"]),
        (["residual=[lns,prores]", "residual.schedule=sqrt"],
         ["residual=lns+prores", "residual.parts.prores.schedule=sqrt"]),
        (["residual=vanilla", "residual=[lns,prores]", "residual.parts.prores.schedule=sqrt"],
         ["residual=vanilla", "residual=lns+prores", "residual.parts.prores.schedule=sqrt"]),
        (["residual=rezero", "residual.lr_scale=2"], ["residual=rezero", "residual.lr_scale=2"]),
    ],
)  # fmt: skip
def test_compositions_are_named_as_hydra_knows_them(given: list[str], named: list[str]) -> None:
    assert name_compositions(given) == named
    assert name_compositions(named) == named


def test_a_key_of_two_parts_and_a_base_of_nothing_are_errors() -> None:
    with pytest.raises(
        UserError, match=r"is a key of prores and prores_block; give residual\.parts\.prores\.schedule=sqrt"
    ):
        name_compositions(["residual=[prores,prores_block]", "residual.schedule=sqrt"])
    with pytest.raises(UserError, match=r"residual\.base needs a strategy beside it"):
        name_compositions(["residual.base=attnres"])


def test_the_section_holds_the_options_of_the_parts_and_builds() -> None:
    config = composed("residual=[lns,prores]", "residual.parts.prores.schedule=sqrt", "residual.output_init_scale=1")
    assert OmegaConf.to_container(config.residual) == {
        "_target_": "src.residual.composed.Composed",
        "_partial_": True,
        "parts": {
            "lns": {"_target_": "src.residual.lns.LayerNormScaling", "_partial_": True, "output_init_scale": 1},
            "prores": {
                "_target_": "src.residual.prores.ProRes",
                "_partial_": True,
                "schedule": "sqrt",
                "warmup_fraction": 0.24,
                "warmup_steps": None,
            },
        },
    }
    parts = read_settings(config).residual.keywords["parts"]
    assert parts["lns"].keywords == {"output_init_scale": 1.0}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("residual=[lns,lns]", "residual=lns+lns names a part twice"),
        ("residual=[lns,nothing]", "residual=nothing is not an option"),
        ("residual.parts.lns.scale=1", "residual.parts.lns.scale is not a key of residual=lns"),
        ("residual.parts.lns.output_init_scale=none", "residual.parts.lns.output_init_scale must be"),
    ],
)
def test_a_mistake_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("+", r"\+")):
        read_settings(composed("residual=[lns,prores]", override))


def test_a_part_of_a_stored_configuration_is_a_class_of_this_project() -> None:
    config = composed("residual=[lns,prores]")
    config.residual.parts.lns._target_ = "subprocess.Popen"
    with pytest.raises(UserError, match=r"residual\.parts\.lns\._target_=subprocess\.Popen is not a component"):
        read_settings(config)


def test_a_composition_in_a_defaults_list_is_an_option_by_its_name() -> None:
    register_compositions()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=["residual=prores+mhc"], return_hydra_config=True)
    assert config.hydra.runtime.choices.residual == "prores+mhc"
    assert list(config.residual.parts) == ["prores", "mhc"]


def test_a_sweep_runs_strategies_beside_compositions(tmp_path: Any) -> None:
    make_shards(tmp_path / "shards")
    keys = [*SMALL, "data.path=shards", "trainer.max_steps=2", "check=off", "hydra.sweep.dir=s"]
    done = run("-m", "residual=vanilla,[lns,resformer]", *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = {path.name: result(path)["name"] for path in (tmp_path / "s").iterdir() if path.is_dir()}
    assert names == {"0-vanilla": "vanilla", "1-lns+resformer": "lns+resformer"}
