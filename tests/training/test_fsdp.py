"""trainer.strategy=fsdp from outside: it trains as one process does, and its checkpoints resume anywhere."""

from pathlib import Path

import pytest

from src.errors import UserError
from src.training.fsdp import require_shardable
from src.training.resume import newest_whole
from tests.runs import SMALL, computed, make_shards, run
from tests.support import composed_settings

FSDP = ["trainer.devices=2", "trainer.strategy=fsdp"]
RUN = [*SMALL, "residual=attnres", "trainer.max_steps=4", "trainer.val_every_steps=2", "optimizer.warmup_steps=1"]


@pytest.mark.slow
def test_a_sharded_run_resumes_on_one_rank_and_back(tmp_path: Path) -> None:
    keys = [*RUN, "schedule=constant", f"data.path={make_shards(tmp_path / 'shards')}"]
    done = run(*keys, *FSDP, "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r/checkpoints/last.ckpt").is_dir()
    one = ["trainer.devices=1", "trainer.strategy=auto"]
    for steps, ranks in ((6, one), (8, FSDP)):
        done = run("resume=r", f"trainer.max_steps={steps}", *ranks, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    whole = run(*keys, "trainer.max_steps=8", "hydra.run.dir=w", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    rows, expected = computed(tmp_path / "r"), computed(tmp_path / "w")
    assert [row["step"] for row in rows] == [row["step"] for row in expected] == list(range(1, 9))
    for row, other in zip(rows, expected, strict=True):
        for key in ("train/loss", "val/loss", "grad_norm"):
            assert row.get(key) == (None if other.get(key) is None else pytest.approx(other[key], rel=1e-5))
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
