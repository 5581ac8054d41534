"""Messages for names that do not exist: the nearest name, or the option that has the key."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from src.launch.suggestions import all_keys, explain, nearest, options, unknown_key, unknown_option
from tests.support import ROOT


def test_the_most_similar_name_is_suggested_and_no_other() -> None:
    assert nearest("hyperconnn", ["vanilla", "hyperconn"]) == ", did you mean hyperconn?"
    assert nearest("zzz", ["vanilla", "hyperconn"]) == ""


def test_the_options_of_a_group_are_its_files() -> None:
    assert options("residual") == sorted(path.stem for path in (ROOT / "conf/residual").glob("*.yaml"))


def test_known_keys_are_dotted_and_leave_out_what_hydra_reads() -> None:
    keys = all_keys()
    assert {"residual", "optimizer.lr", "residual.n_stream", "trainer.max_steps"} <= set(keys)
    assert not [key for key in keys if "_target_" in key or key.startswith(("defaults", "hydra"))]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (
            "lr",
            "lr is not a key, did you mean optimizer.lr or residual.lr?; `python run.py --cfg job` shows them all",
        ),
        (
            "trainer.max_step",
            "trainer.max_step is not a key, did you mean trainer.max_steps?; `python run.py --cfg job` shows them all",
        ),
        (
            "recurrence.mlp",
            "recurrence.mlp is not a key of this configuration but of recurrence=mini; choose that first",
        ),
        (
            "model.rope_scaling",
            "model.rope_scaling is not a key of this configuration but of model=tiny; choose that first, "
            "or give +model.rope_scaling=<value> with model=from_checkpoint",
        ),
        (
            "residual.parts.rezero.gate",
            "residual.parts.rezero.gate is not a key of residual=rezero, did you mean gate_init?; "
            "keys: gate_init, lr_scale",
        ),
        (
            "bench.peer",
            "bench.peer is not a key of this configuration but of task=bench; choose that first",
        ),
    ],
)
def test_an_unknown_key_is_explained(key: str, sentence: str) -> None:
    assert unknown_key(key) == sentence


@pytest.mark.parametrize(
    ("override", "start"),
    [
        (
            "residual=hypercon",
            "residual=hypercon is not an option, did you mean hyperconn?; options: ",
        ),
        ("trainer.max_step=5", "trainer.max_step is not a key, did you mean trainer.max_steps?"),
        ("callbacks=[emaa]", "callbacks=emaa is not an option, did you mean ema?"),
        (
            "residual=vanilla,lns",
            "residual=vanilla,lns has several values; add -m to run each of them, or give residual=[vanilla,lns] for a",
        ),
        ("experiment=debgu", "experiment=debgu is not an option, did you mean debug?"),
        ("scale=cpuu", "scale=cpuu is not an option, did you mean cpu?"),
        ("study=miniatur", "study=miniatur is not an option, did you mean miniature?"),
        (
            "samples.prompt=The old house, said he",
            "samples.prompt=The old house, said he has several values; add -m to run each of them, or give "
            "samples.prompt=[The old house, said he] for a list; for one text with a comma, quote it inside: "
            "'samples.prompt=\"The old house, said he\"'",
        ),
        ("residual", "'residual' must be key=value without spaces around =; see --help"),
        ("help", "'help' must be key=value without spaces around =; see --help"),
        (
            "trainer.max_time=a=b",
            "trainer.max_time=a=b has a character that Hydra reads as syntax; quote the value inside: "
            "'trainer.max_time=\"a=b\"'",
        ),
        (
            "data.path=[/a=b,/c]",
            "data.path=[/a=b,/c] cannot be read; check its brackets and quotes, and quote each text in it that has a "
            "character which Hydra reads as syntax, as in 'data.path=[\"a=b\"]'",
        ),
    ],
)
def test_an_error_of_hydra_is_one_line(override: str, start: str) -> None:
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        pytest.raises(HydraException) as error,
    ):
        compose("config", overrides=[override])
    line = explain(error.value)
    assert line.startswith(start)
    assert "\n" not in line
    assert "See https://" not in line


def test_a_new_key_of_an_own_class_is_given_with_a_plus() -> None:
    own = ["residual._target_=mystrategies.halved.Halved", "residual.scale=0.5"]
    error = HydraException("Could not override 'residual.scale'.")
    line = (
        "residual.scale is not a key of this configuration; a key of your own class needs a plus: +residual.scale=0.5"
    )
    assert explain(error, own) == line
    assert explain(error, own[1:]).endswith("choose that first")


def test_a_key_similar_to_one_of_the_chosen_task_is_meant() -> None:
    error = HydraException("Could not override 'run'.")
    assert explain(error, ["task=report", "run=x"]) == "run is not a key of task=report, did you mean runs?"
    assert explain(error, ["run=x"]).startswith("run is not a key of this configuration but of task=analyze or ")


def test_an_option_with_another_name_now_is_named() -> None:
    assert "siamesenorm is not an option, did you mean siamesenorm_deit?" in unknown_option("residual", "siamesenorm")


def test_tensorboard_is_no_option_since_it_is_always_on() -> None:
    assert "TensorBoard is always on" in unknown_option("logger", "tensorboard")


def test_many_options_are_counted_and_few_are_listed() -> None:
    words = unknown_option("residual", "vanila")
    assert words.startswith("residual=vanila is not an option, did you mean vanilla?; options: ")
    assert words.endswith(f"{len(options('residual'))}, see docs/strategies.md")
    assert "rmsnorm" in unknown_option("norm", "nothing")


def test_a_key_of_a_part_that_is_not_there_names_the_part() -> None:
    words = unknown_key("residual.parts.mhc.n_stream")
    assert words == (
        "residual.parts.mhc.n_stream: mhc is not a part of this residual; give residual=[mhc,...] or residual.n_stream"
    )


@pytest.mark.parametrize(
    ("group", "name", "option"),
    [
        ("residual", "hyperconnections", "hyperconn"),
        ("residual", "hyper_connections", "hyperconn"),
        ("residual", "hc", "hyperconn"),
        ("residual", "dhc", "hyperconn"),
        ("residual", "HyperConn", "hyperconn"),
        ("residual", "attention_residuals", "attnres"),
        ("residual", "layer_scale", "layerscale"),
        ("residual", "pre_ln", "vanilla"),
        ("residual", "Pre-LN", "vanilla"),
        ("residual", "post_ln", "postln"),
        ("residual", "hyperconections", "hyperconn"),  # a synonym, misspelt
        ("norm", "rms_norm", "rmsnorm"),
        ("optimizer", "adam", "adamw"),
        ("model", "gpt2", "gpt2_small"),
    ],
)
def test_an_option_is_found_by_its_other_names(group: str, name: str, option: str) -> None:
    assert unknown_option(group, name).startswith(f"{group}={name} is not an option, did you mean {option}?; options: ")


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_other_name_belongs_to_two_options(path: Path) -> None:
    own = _other_names(path)
    for other in path.parent.glob("*.yaml"):
        assert not own & {other.stem}
        assert other == path or not own & _other_names(other)


def _other_names(path: Path) -> set[str]:
    lines = re.findall(r"^# also: (.*)$", path.read_text(), re.MULTILINE)
    return {name.strip() for line in lines for name in line.split(",")}
