"""Command lines as people type them: flags anywhere, `~` in paths, names that stay in their folder."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from src.errors import UserError
from src.launch.command_line import check_name, expand_home, tidy_arguments


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HOME", "/home/me")
    return "/home/me"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        (["model=tiny", "-m", "seed=1,2"], ["-m", "model=tiny", "seed=1,2"]),
        (["model=tiny", "seed=1,2", "--multirun"], ["--multirun", "model=tiny", "seed=1,2"]),
        (["seed=1", "--cfg", "job", "name=x"], ["--cfg", "job", "seed=1", "name=x"]),
        (["seed=1", "--cfg=job", "--resolve"], ["--cfg=job", "--resolve", "seed=1"]),
        (["seed=1", "--cfg"], ["--cfg", "seed=1"]),  # argparse says what is missing
        (["~logger", "+a=1", "++b=-1"], ["~logger", "+a=1", "++b=-1"]),
    ],
)
def test_flags_may_stand_anywhere(typed: list[str], read: list[str]) -> None:
    assert tidy_arguments(typed) == read


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("data.path=~/shards", "data.path=/home/me/shards"),
        ("resume='~/runs/a b'", "resume='/home/me/runs/a b'"),
        ('data.path="~/shards"', 'data.path="/home/me/shards"'),
        ("data.path=[~/a,~/b]", "data.path=[/home/me/a,/home/me/b]"),
        ("data.path=~/a,~/b", "data.path=/home/me/a,/home/me/b"),
        ("data.path=[{path: ~/web, weight: 3}]", "data.path=[{path: /home/me/web, weight: 3}]"),
        ("data.path=a~/b", "data.path='a~/b'"),
        ("~data.path", "~data.path"),
    ],
)
def test_the_home_folder_is_expanded(typed: str, read: str, home: str) -> None:
    assert tidy_arguments([typed]) == [read]
    OverridesParser.create().parse_override(read)


def test_a_home_folder_with_a_blank_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/Users/Jo O'Neill")
    (argument,) = tidy_arguments(["data.path=~/shards"])
    assert OverridesParser.create().parse_override(argument).value() == "/Users/Jo O'Neill/shards"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "été"),
        ("data.path", "/data/lr=1e-3/shards"),
        ("runs", "/tmp/it's"),
        ("sample.prompt", "What's up?"),
        ("sample.prompt", "(a) [b] {c} #1"),
        ("+prepare.source", "texts (old)/*.jsonl"),
        ("output", "it's\\"),
        ("checkpoint", "~x/last.ckpt="),
    ],
)
def test_a_path_or_text_may_have_any_character(key: str, value: str) -> None:
    (argument,) = tidy_arguments([f"{key}={value}"])
    assert OverridesParser.create().parse_override(argument).value() == value


@pytest.mark.parametrize(
    "argument", ["sample.prompt=Once upon", "data.path=[a,b]", "data.path=a,b", "trainer.max_steps=a=b", "name='a=b'"]
)
def test_other_values_are_left_to_hydra(argument: str) -> None:
    assert tidy_arguments([argument]) == [argument]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--residual=vanilla"], "--residual is not a flag; overrides have no dashes: residual=vanilla"),
        (["seed=1", "--resume", "runs/x"], "--resume is not a flag; overrides have no dashes: resume=runs/x"),
        (["--resume", "--cfg", "job"], "--resume is not a flag; overrides have no dashes: resume=<value>"),
    ],
)
def test_an_override_with_dashes_is_explained(typed: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        tidy_arguments(typed)
    assert str(error.value) == words


@pytest.mark.parametrize(
    ("others", "added"),
    [
        ([], ["name=Halved"]),
        (["task=train", "experiment=[debug,scaled_down]"], ["name=Halved"]),
        (["task=check"], ["name=check-Halved"]),
        (["name=mine"], []),
        (["++name=mine"], []),
        (["experiment=residual_vanilla"], []),
        (["resume=r"], []),
        (["task=bench"], []),
    ],
)
def test_a_run_of_an_own_strategy_is_named_after_its_class(others: list[str], added: list[str]) -> None:
    typed = ["residual._target_=mystrategies.halved.Halved", *others]
    assert tidy_arguments(typed) == [*typed, *added]


def test_the_runs_of_a_sweep_of_own_strategies_are_named_after_their_targets() -> None:
    typed = ["-m", "residual._target_=mine.A,mine.B"]
    assert tidy_arguments(typed) == [*typed, "name=${residual._target_}"]


def test_flags_of_hydra_may_be_shortened() -> None:
    assert tidy_arguments(["--multi", "--hydra-h", "--cfg=job"]) == ["--multi", "--hydra-h", "--cfg=job"]


def test_the_home_folder_is_expanded_in_files(home: str) -> None:
    config = OmegaConf.create(
        {
            "data": {"path": "~/shards", "also": ["~/a", {"b": "~/c"}]},
            "text": "about ~/x",
            "at": "~",
            "r": "${data.path}",
        }
    )
    OmegaConf.set_struct(config, True)
    expand_home(config)
    assert OmegaConf.to_container(config) == {
        "data": {"path": "/home/me/shards", "also": ["/home/me/a", {"b": "/home/me/c"}]},
        "text": "about ~/x",
        "at": "~",
        "r": "${data.path}",
    }


@pytest.mark.parametrize("name", ["../../escape", "/tmp/x", "a/b", "..", ".", "a\\b"])
def test_a_name_is_one_part_of_a_path(name: str) -> None:
    words = r"must be one part of a path.*hydra\.run\.dir=<folder>"
    with pytest.raises(UserError, match=words):
        check_name(name)
    for typed in (f"name={name}", f"name='{name}'", f"++name=good,{name}"):
        with pytest.raises(UserError, match=words):
            tidy_arguments(["-m", typed])


@pytest.mark.parametrize("name", ["a", "lns+resformer", "lr=3e-4", "..a", "x y", "${seed}/x"])
def test_other_names_are_kept(name: str) -> None:
    assert tidy_arguments([f"name='{name}'"]) == [f"name='{name}'"]


@pytest.mark.parametrize(
    ("others", "added"),
    [
        ([], ["name=lns+resformer"]),
        (["task=check"], ["name=check-lns+resformer"]),
        (["name=mine"], []),
        (["model=tiny"], []),
        (["init_from=openai-community/gpt2"], []),
    ],
)
def test_a_run_that_continues_an_export_is_named_after_the_exported_run(
    others: list[str], added: list[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"run": {"name": "lns+resformer"}}')
    typed = [f"init_from={tmp_path}", "model=from_checkpoint", *others]
    assert tidy_arguments(typed) == [*typed, *added]
