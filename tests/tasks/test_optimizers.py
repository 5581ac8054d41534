"""optimizer=muon from the command line: its keys, and runs under it."""

import signal
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.bench.peers import read_peers
from src.errors import UserError
from src.files import CONF
from src.reporting.report import build_report
from src.settings.read import read_settings
from tests.faulty import faulty
from tests.runs import DDP, SMALL, begin, computed, kill_after, make_shards, metrics, result, run, same_weights
from tests.support import composed_settings

LEAN = [*SMALL, "trainer.stream_pictures=false", "samples.tokens=0", "check=off"]
MUON = [*LEAN, "optimizer=muon"]
PLAIN = {"lr", "min_lr", "warmup_steps", "weight_decay", "betas", "eps", "grad_clip"}


# ---- keys


def test_muon_has_adamws_keys_and_its_own() -> None:
    adamw, muon = (composed_settings(f"optimizer={name}").config["optimizer"] for name in ("adamw", "muon"))
    assert set(adamw) == PLAIN
    assert set(muon) == {*PLAIN, "muon"}
    assert {key: muon[key] for key in PLAIN} == adamw
    assert set(muon["muon"]) == {"momentum", "ns_steps", "lr_scale"}


def test_a_configuration_of_before_there_was_a_choice_is_adamws() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["name=x", "trainer=cpu"])
    stored = OmegaConf.create(OmegaConf.to_container(config))
    assert read_settings(stored).optimizer.muon is None  # type: ignore[arg-type]  # a mapping


def test_an_experiments_rates_hold_under_muon() -> None:
    settings = composed_settings("experiment=residual_reference", "optimizer=muon", "evaluation=none")
    assert (settings.optimizer.lr, settings.optimizer.warmup_steps) == (3e-4, 541)
    assert settings.optimizer.muon is not None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.muon.momentum=1", r"optimizer\.muon\.momentum must be in \[0, 1\), got 1"),
        ("optimizer.muon.ns_steps=0", r"optimizer\.muon\.ns_steps must be at least 1 and below 100, got 0"),
        ("optimizer.muon.ns_steps=5.5", r"optimizer\.muon\.ns_steps must be int, got 5\.5"),
        ("optimizer.muon.lr_scale=0", r"optimizer\.muon\.lr_scale must be positive, got 0"),
        ("optimizer.muon.lr_scale=fast", r"optimizer\.muon\.lr_scale must be float, got 'fast'"),
        ("optimizer.muon=null", r"optimizer\.muon must be a section of keys"),
        ("+optimizer.muon.momentun=0", r"momentun is no key, did you mean optimizer\.muon\.momentum\?"),
        ("optimizer.lr=-1", r"optimizer\.lr must be positive"),
        ("~optimizer.muon.ns_steps", r"optimizer\.muon\.ns_steps is missing"),
    ],
)
def test_a_mistake_is_told_with_its_key(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        composed_settings("optimizer=muon", override)


def test_a_peer_under_another_optimizer_is_refused() -> None:
    settings = composed_settings("optimizer=muon")
    with pytest.raises(UserError, match=r"bench\.peer=benchmarks\.peers:plain steps under AdamW"):
        read_peers(["benchmarks.peers:plain"], settings, [])
    assert read_peers([], settings, []) == []


# ---- runs


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def sweep(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("sweep")
    keys = [f"data.path={shards}", "name=x", "hydra.sweep.dir=s", "hydra.sweep.subdir=${hydra.job.num}"]
    done = run("-m", *LEAN, *keys, "optimizer=adamw,muon", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "s"


@pytest.mark.slow
def test_a_sweep_over_optimizers_trains_under_each_and_a_report_sees_the_difference(sweep: Path) -> None:
    adamw, muon = metrics(sweep / "0"), metrics(sweep / "1")
    assert adamw[0]["train/loss"] == muon[0]["train/loss"]
    assert adamw[-1]["train/loss"] != muon[-1]["train/loss"] < muon[0]["train/loss"]
    assert len(muon) == 12
    sizes = [(sweep / job / "checkpoints/last.ckpt").stat().st_size for job in ("0", "1")]
    assert sizes[1] < sizes[0]
    without = " ".join(f"optimizer.muon.{key}=-" for key in ("lr_scale", "momentum", "ns_steps"))
    report = build_report([sweep], f"x {without}", ["residual"])
    assert {"optimizer.muon.momentum", "optimizer.muon.lr_scale"} <= {found.key for found in report.unfair}
    fair = build_report([sweep], f"x {without}", ["residual", "optimizer"])
    assert not any(found.key.startswith("optimizer") for found in fair.unfair)


@pytest.mark.slow
def test_a_run_killed_goes_on_bitwise(sweep: Path, shards: Path, tmp_path: Path) -> None:
    process = begin(*MUON, "name=x", f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert kill_after(6, tmp_path / "r", process, signal.SIGKILL) == -signal.SIGKILL
    saved = [int(path.stem.removeprefix("step")) for path in (tmp_path / "r").glob("checkpoints/step*.ckpt")]
    done = run("resume=r", "optimizer=adamw", cwd=tmp_path)
    assert (done.returncode, "its own optimizer" in done.stderr) == (2, True)
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "r")["resumed_at"] == [max(saved)]
    assert max(saved) < 12
    assert computed(tmp_path / "r") == computed(sweep / "1")
    assert same_weights(tmp_path / "r", sweep / "1")


@pytest.mark.slow
def test_two_ranks_stay_together_and_go_back_together(shards: Path, tmp_path: Path) -> None:
    keys = [*DDP, *faulty("poison", 9, tmp_path), f"data.path={shards}", "guard=rollback", "hydra.run.dir=r"]
    done = run(*MUON, *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # the guard compares their weights at every save
    stated = result(tmp_path / "r")
    assert stated["world_size"] == 2
    assert [(event["at"], event["to"]) for event in stated["rollbacks"]] == [(10, 8)]
    assert [row["step"] for row in metrics(tmp_path / "r")] == list(range(1, 13))
