"""A branch of a run equals a run that was trained with the branch's configuration from step 0."""

import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from src.callbacks.checkpoints import read_checkpoint
from src.errors import UserError
from src.launch.arguments import use_stored_config
from src.launch.job import COMPLETED, Job
from src.models.gpt import GPT
from src.settings.read import Settings, read_settings
from src.tasks import train
from src.training.branch import _link_or_copy, _state_at, find_branch, training_seconds
from src.training.saved_weights import _require_checkpoint_of_run
from tests.runs import SMALL, computed, make_shards, result, run, same_weights
from tests.settings.test_read import composed
from tests.support import tiny_gpt

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers
STABLE = [
    *SMALL,
    "schedule=wsd",
    "optimizer.warmup_steps=2",
    "optimizer.min_lr=0",
    "schedule.decay_steps=4",
    "check=off",
    "trainer.stream_pictures=false",
    "samples.tokens=0",
]


def fit(folder: Path, *overrides: str) -> None:
    """Train in this process, in a new folder."""
    end = train.run(Job(folder, composed(*STABLE, f"data.path={folder.parent / 'shards'}", *overrides), resumes=False))
    assert end.code == COMPLETED, end.line


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 24 steps whose rate decays in the last four, with permanent checkpoints of steps 6 and 8."""
    folder = tmp_path_factory.mktemp("branch")
    make_shards(folder / "shards")
    fit(folder / "stable", "trainer.max_steps=24", "trainer.keep_steps=[6,8]")
    return folder


def test_a_branch_at_the_last_stable_step_equals_a_run_that_decayed_there(stable: Path) -> None:
    fit(stable / "alone")  # 12 steps, the last four decay
    keys = ["schedule.decay_steps=4", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=at${at}", "name=branch"]
    done = run("-m", "branch_from=stable", "at=6,8", *keys, cwd=stable)
    assert done.returncode == 0, done.stderr
    branch, alone = stable / "sweep/at8", stable / "alone"
    assert computed(branch) == computed(alone)
    assert same_weights(branch, alone)
    ours, theirs = result(branch), result(alone)
    assert all(ours[key] == theirs[key] for key in ("steps", "max_steps", "tokens", "val_loss", "flops_per_token"))
    origin = ours["branched_from"]
    assert (origin["folder"], origin["step"], origin["tokens"]) == (str(stable / "stable"), 8, 8 * 4 * 32)
    assert 0 < origin["seconds"] < ours["seconds"]
    stored = (stable / "stable/checkpoints/step00000008.ckpt.sha256").read_text()
    assert stored.startswith(origin["sha256"])
    assert (branch / "checkpoints/best.ckpt").exists()
    assert result(stable / "sweep/at6")["steps"] == 10
    assert result(stable / "sweep/at6")["config_hash"] != ours["config_hash"]


def test_a_branch_resumes_in_its_folder_and_its_checkpoints_are_its_own(stable: Path) -> None:
    folder, config = stable / "resumed", OmegaConf.load(stable / "stable/config.yaml")
    assert isinstance(config, DictConfig)
    own = {"branch_from": str(stable / "stable"), "at": 8, "trainer": {"max_steps": 12, "keep_steps": None}}
    config = OmegaConf.merge(config, own)
    assert isinstance(config, DictConfig)
    train.run(Job(folder, config, resumes=False))
    rows = computed(folder)
    for path in (folder / "checkpoints").glob("*.ckpt"):
        if path.name != "step00000008.ckpt":
            path.unlink()
    (folder / "result.json").write_text((folder / "result.json").read_text().replace("completed", "interrupted"))
    assert train.run(Job(folder, config, resumes=True)).code == COMPLETED
    assert result(folder)["resumed_at"] == [8]
    assert computed(folder) == rows
    for path in (folder / "checkpoints").glob("*.ckpt"):
        _require_checkpoint_of_run(path, folder, read_checkpoint(path)["reslab"])


def settings_of(stable: Path, **changes: Any) -> Settings:
    config = OmegaConf.load(stable / "stable/config.yaml")
    assert isinstance(config, DictConfig)
    values = {"branch_from": str(stable / "stable"), "at": 8, "trainer.keep_steps": None, **changes}
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    return read_settings(config)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"at": 7}, r"has no checkpoint of step 7 \(it has 6, 8, 20, 24\).*trainer\.keep_steps=\[7\]"),
        ({"optimizer.weight_decay": 0.2}, r"weight_decay was 0\.1, is 0\.2, .*; give optimizer\.weight_decay=0\.1, or"),
        ({"trainer.overfit_batches": 1}, r"overfit_batches was None, is 1, .*; leave trainer\.overfit_batches out"),
        ({"data.val_tokens": 512}, r"data\.val_tokens was 1024, is 512"),
        ({"seed": 2}, r"seed was 1, is 2"),
        ({"trainer.max_steps": 8}, r"at=8 must be less than trainer\.max_steps=8"),
        ({"trainer.max_steps": 11}, r"step 8 ran at a learning rate of 0\.\d+, and the branch's schedule says"),
    ],
)
def test_what_would_not_equal_a_run_of_its_own_is_rejected(stable: Path, changes: dict[str, Any], words: str) -> None:
    data = {"hash": result(stable / "stable")["data"]["hash"]}
    with pytest.raises(UserError, match=words):
        find_branch(settings_of(stable, **changes), data)


def test_the_decay_and_what_observes_the_run_may_differ(stable: Path) -> None:
    data = {"hash": result(stable / "stable")["data"]["hash"]}
    changes = {"optimizer.min_lr": 1e-4, "schedule.decay_shape": "linear", "trainer.val_every_steps": 3, "name": "b"}
    changes |= {"trainer.restarts": 1}
    found = find_branch(settings_of(stable, **changes, **{"trainer.max_steps": 13}), data)
    assert (found.step, found.path.name) == (8, "step00000008.ckpt")


def test_a_branch_needs_its_step_and_a_sweep_is_none_of_the_other_keys(stable: Path) -> None:
    with pytest.raises(UserError, match=r"^branch_from=<run folder> needs at=<step>"):
        use_stored_config([f"branch_from={stable / 'stable'}"])
    with pytest.raises(UserError, match=r"give resume=<folder> .* or branch_from=<folder> .*, not both"):
        use_stored_config([f"branch_from={stable / 'stable'}", f"resume={stable / 'stable'}", "at=8"])
    with pytest.raises(ValueError, match=r"branch_from=<run folder> and at=<step> go together"):
        settings_of(stable, branch_from=None)


def test_a_strategy_that_follows_the_length_has_another_state_under_another_length() -> None:
    gpts: list[tuple[GPT, bool]] = [(tiny_gpt("vanilla"), True), (tiny_gpt("prores"), False)]
    gpts.append((tiny_gpt(recurrence="mini"), False))
    for gpt, equal in gpts:
        assert all(_state_at(gpt, s, 24) == _state_at(gpt, s, 12) for s in range(8)) is equal


def test_training_time_follows_from_the_logged_speeds() -> None:
    rows: list[dict[str, float | int]] = [
        {"step": 2, "tokens": 200, "tokens_per_s": 100.0},
        {"step": 3, "tokens": 300, "val/loss": 1.0},
        {"step": 4, "tokens": 400, "tokens_per_s": 50.0},
    ]
    assert math.isclose(training_seconds(rows, 500), 2 + 4 + 2)
    assert training_seconds([], 500) == 0


def test_a_copy_of_a_sharded_checkpoint_that_a_kill_cut_off_is_made_again(tmp_path: Path) -> None:
    source, target = tmp_path / "run/step00000008.ckpt", tmp_path / "branch/step00000008.ckpt"
    for folder in (source, target, target.with_name(f".{target.name}.part")):  # killed after the copy, and in it
        folder.mkdir(parents=True)
        (folder / "plain.pt").write_text(str(folder.parent))
    _link_or_copy(source, target)
    assert (target / "plain.pt").read_text() == str(source.parent)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
