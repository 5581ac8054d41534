"""trainer.strategy=fsdp from outside: it trains as one process does, and its checkpoints resume anywhere."""

from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from src.errors import UserError
from src.files import sha256_file
from src.launch.job import Job
from src.tasks import train
from src.training.fsdp import require_shardable
from src.training.resume import newest_whole
from tests.runs import SMALL, computed, make_shards, result, run
from tests.settings.test_read import composed
from tests.support import composed_settings

FSDP = ["trainer.devices=2", "trainer.strategy=fsdp"]
#: Ranks have validation batches of unequal number in both sets.
RUN = [
    *(*SMALL, "residual=attnres", "schedule=constant", "optimizer.warmup_steps=1", "check=off"),
    *("trainer.max_steps=4", "trainer.val_every_steps=2", "trainer.keep_steps=[1]"),
    *("data.val_tokens=1056", "data.val_sets={other:shards/fineweb_val_*.bin}"),
]


def check_rows(folder: Path, expected: Path) -> None:
    rows, others = computed(folder), computed(expected)
    assert [row["step"] for row in rows] == [row["step"] for row in others] == list(range(1, 9))
    for row, other in zip(rows, others, strict=True):
        for key in ("train/loss", "val/loss", "val/other/loss", "grad_norm"):
            assert row.get(key) == (None if other.get(key) is None else pytest.approx(other[key], rel=1e-5))


@pytest.mark.stress  # tests/models/test_sharding.py and tests/callbacks/test_sharded_checkpoint.py have its parts
@pytest.mark.filterwarnings("ignore")  # Lightning's advice on loggers and workers
def test_a_sharded_run_resumes_and_branches_on_one_rank_and_resumes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [*RUN, f"data.path={make_shards(tmp_path / 'shards')}"]
    done = run(*keys, *FSDP, "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = sha256_file(tmp_path / "r/checkpoints/last.ckpt/manifest.sha256")
    one = {"trainer": {"devices": 1, "strategy": "auto", "max_steps": 8}, "branch_from": str(tmp_path / "r"), "at": 4}
    train.run(Job(tmp_path / "b", DictConfig(OmegaConf.merge(OmegaConf.load("r/config.yaml"), one)), resumes=False))
    for steps, ranks in ((6, ["trainer.devices=1", "trainer.strategy=auto"]), (8, FSDP)):
        done = run("resume=r", f"trainer.max_steps={steps}", *ranks, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    train.run(Job(tmp_path / "w", composed(*keys, "trainer.max_steps=8"), resumes=False))
    check_rows(tmp_path / "r", tmp_path / "w")
    check_rows(tmp_path / "b", tmp_path / "w")
    assert (tmp_path / "r/checkpoints/step00000001.ckpt").is_dir()
    assert result(tmp_path / "b")["branched_from"]["sha256"] == manifest
    # A damaged folder falls back to the one before, as a damaged file does.
    last = (tmp_path / "r/checkpoints/last.ckpt").resolve()
    (last / "__1_0.distcp").write_bytes(b"")
    found = newest_whole(tmp_path / "r/checkpoints")
    assert found is not None
    assert found[1]["reslab"]["step"] < 8


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["safety.background_saves=true"], "safety.background_saves must be false with trainer.strategy=fsdp"),
        (["callbacks=ema"], "the callback EMAWeightAveraging copies whole weights"),
        (["optimizer=torch", "optimizer._target_=torch.optim.Adafactor"], "optimizer Adafactor is not known to take"),
    ],
)
def test_what_needs_whole_weights_is_rejected(keys: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        require_shardable(composed_settings(*FSDP, "evaluation=none", *keys))
    require_shardable(composed_settings(*FSDP, "evaluation=none", "optimizer=muon"))
    require_shardable(composed_settings("evaluation=none", "callbacks=ema"))


def test_keys_that_contradict_sharding_are_rejected() -> None:
    for keys, words in (
        (["trainer.strategy=fsdp"], "trainer.strategy=fsdp shards among two ranks or more, got 1"),
        ([*FSDP, "trainer.compile=true"], "trainer.compile must be false with trainer.strategy=fsdp"),
        (["trainer.shard_within_node=true"], "trainer.shard_within_node=true needs trainer.strategy=fsdp"),
    ):
        with pytest.raises(UserError, match=words):
            composed_settings(*keys, "evaluation=none")
