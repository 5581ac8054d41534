"""Arguments of runs that resume, and the text of a stored configuration."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.errors import UserError
from src.launch.arguments import resolve_auto, stored_yaml, use_stored_config


def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "it's a run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: x\n")
    return folder


def test_arguments_without_resume_are_left_alone() -> None:
    for arguments in (["residual=vanilla"], ["resume=null"], ["--help"]):
        assert use_stored_config(arguments) == arguments


def test_a_resumed_run_composes_its_own_configuration_in_its_own_folder(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    arguments = use_stored_config([f"resume={folder}", "trainer.max_steps=9"])
    assert arguments[:4] == ["--config-path", str(folder), "--config-name", "config"]
    assert arguments[-1] == "trainer.max_steps=9"


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (["-m"], "cannot be part of a sweep"),
        (["residual=vanilla"], "keeps the residual"),
        (["+experiment=residual_reference"], "keeps the experiment"),
    ],
)
def test_an_override_that_changes_the_run_is_rejected(rest: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        use_stored_config([f"resume={run_folder(tmp_path)}", *rest])


def test_a_folder_that_is_no_run_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run folder \(it has no config\.yaml\)"):
        use_stored_config([f"resume={tmp_path}"])


def test_from_run_makes_a_new_folder(tmp_path: Path) -> None:
    arguments = use_stored_config([f"from_run={run_folder(tmp_path)}"])
    assert [a for a in arguments if a.startswith("hydra.run.dir=multirun/")]
    assert arguments[-1].startswith("++from_run=")


def test_auto_resumes_the_newest_run_of_the_name_or_starts_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_auto(["resume=auto", "name=x"]) == ["name=x"]
    run = tmp_path / "multirun/r"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: x\n")
    assert resolve_auto(["resume=auto", "name=x"])[-1] == "resume='multirun/r'"
    assert resolve_auto(["resume=auto", "name=y"]) == ["name=y"]
    assert resolve_auto(["hydra.run.dir=new", "resume=auto"]) == ["hydra.run.dir=new"]
    with pytest.raises(UserError, match="resume=auto needs name="):
        resolve_auto(["resume=auto"])


def test_a_file_with_keys_of_hydra_is_rejected(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder / "config.yaml").write_text("defaults: []\n")
    with pytest.raises(UserError, match="contains defaults, which no run writes"):
        use_stored_config([f"resume={folder}"])


@pytest.mark.parametrize("text", ["${name}", r"\${name}", r"\\${a}", "plain", "a: b"])
def test_a_stored_text_is_read_as_it_was(text: str) -> None:
    stored = OmegaConf.create(stored_yaml({"name": "x", "keys": [text, {"b": text}]}))
    assert OmegaConf.to_container(stored, resolve=True) == {"name": "x", "keys": [text, {"b": text}]}
