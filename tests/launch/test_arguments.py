"""Arguments of runs that resume, and the text of a stored configuration."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from src.errors import UserError
from src.launch import arguments as launch_arguments
from src.launch.arguments import BRANCH_END, resolve_auto, resume_after_restart, stored_yaml, use_stored_config
from src.launch.world import World


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
        (["evaluation=full"], r"keeps the evaluation .* with task=evaluate run=.* evaluation=full$"),
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
    for name, text in (("cut", "name: ["), ("other", "x"), ("binary", "\xff")):  # of others, which are not in the way
        (tmp_path / "multirun" / name).mkdir()
        (tmp_path / "multirun" / name / "config.yaml").write_text(text, encoding="latin-1")
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


AGAIN = World("torchrun", size=2, local_size=2, restarts=1, job="abc")


def job_folder(multirun: Path, *, status: str = "running", job: str = "abc", overrides: str = "- seed=3\n") -> Path:
    folder = multirun / "2026-01-01" / f"{job}-{status}"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra/overrides.yaml").write_text(overrides)
    (folder / "result.json").write_text(f'{{"status": "{status}", "launched_by": "{job}"}}')
    return folder


def test_a_restarted_job_resumes_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resume_after_restart(["seed=3"], AGAIN) == ["seed=3"]
    folder = job_folder(Path("multirun"))
    job_folder(Path("multirun"), job="other")
    expected = ["seed=3", f"hydra.run.dir='{folder}'", f"resume='{folder}'"]
    assert resume_after_restart(["seed=3"], AGAIN) == expected
    given = ["seed=3", f"hydra.run.dir={folder}"]
    assert resume_after_restart(given, AGAIN)[-1] == f"resume='{folder}'"
    assert use_stored_config(expected) == expected


@pytest.mark.parametrize("arguments", [["seed=4"], ["-m", "seed=3"], ["seed=3", "resume=r"]])
def test_another_command_line_is_another_job(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job_folder(Path("multirun"))
    assert resume_after_restart(arguments, AGAIN) == arguments


@pytest.mark.parametrize("keys", [["from_run={}"], ["branch_from={}", "at=40"]])
@pytest.mark.parametrize("given", [[], ["hydra.run.dir=multirun/2026-01-01/abc-running"]])
def test_a_restarted_job_resumes_the_run_that_it_began_from_another(
    keys: list[str], given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = run_folder(tmp_path)
    arguments = [*(key.format(source.name) for key in keys), "schedule.decay_steps=4", *given]
    assert resume_after_restart(arguments, AGAIN) == arguments
    began = use_stored_config(arguments)[4:]  # of one rank without a launcher; the next start has two
    own = [a.replace(BRANCH_END, "trainer.max_steps='44'") for a in began if not a.startswith(("hydra.", "hydra/"))]
    folder = job_folder(Path("multirun"), overrides=str(OmegaConf.to_yaml(OmegaConf.create(own))))
    (folder / "config.yaml").write_text("name: x\n")
    assert resume_after_restart(arguments, AGAIN) == ["schedule.decay_steps=4", f"resume='{folder}'"]
    assert resume_after_restart([*arguments, "seed=4"], AGAIN) == [*arguments, "seed=4"]
    monkeypatch.setattr(launch_arguments, "read_world", lambda: AGAIN)
    resumed = use_stored_config(arguments)
    assert resumed[:2] == ["--config-path", str(folder.resolve())]
    assert f"hydra.run.dir='{folder.resolve()}'" in resumed
    assert not [a for a in resumed if a.lstrip("+").startswith(("from_run=", "branch_from=", "at="))]


def test_a_node_that_joined_restarts_the_workers_without_counting_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    joined, requeued = World("torchrun", job="abc"), World("none", job="abc")
    job_folder(Path("multirun"), status="completed")
    assert resume_after_restart(["seed=3"], joined) == ["seed=3"]
    folder = job_folder(Path("multirun"))
    assert resume_after_restart(["seed=3"], joined)[-1] == f"resume='{folder}'"
    assert resume_after_restart(["seed=3"], requeued) == ["seed=3"]


def test_a_launched_run_that_resumes_takes_its_ranks_from_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path)
    alone = [a for a in use_stored_config([f"resume={folder}"]) if "trainer." in a]
    assert alone == ["++trainer.num_nodes=auto"]  # the stored run may have had several
    for name, value in {"TORCHELASTIC_RUN_ID": "abc", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert "++trainer.devices=auto" in use_stored_config([f"resume={folder}"])
    assert "++trainer.strategy=auto" in use_stored_config([f"resume={folder}"])


@pytest.mark.parametrize(("size", "strategy"), [(2, []), (1, ["++trainer.strategy=auto"])])
def test_a_sharded_run_that_a_launcher_resumes_stays_sharded(
    size: int, strategy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path)
    path = folder / "config.yaml"
    stored = OmegaConf.merge(OmegaConf.load(path), {"trainer": {"strategy": "fsdp", "shard_within_node": True}})
    OmegaConf.save(stored, path)
    for name, value in {"TORCHELASTIC_RUN_ID": "abc", "RANK": "0", "WORLD_SIZE": str(size)}.items():
        monkeypatch.setenv(name, value)
    found = use_stored_config([f"resume={folder}"])
    assert [a for a in found if a.startswith("++trainer.strategy")] == strategy
    assert ("++trainer.shard_within_node=false" in found) == (size == 1)


def test_a_damaged_record_of_another_run_does_not_stop_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (job_folder(Path("multirun"), job="other") / "result.json").write_text("{")
    assert resume_after_restart(["seed=3"], AGAIN) == ["seed=3"]
