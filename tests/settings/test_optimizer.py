"""The sections optimizer and schedule from the command line: their keys, stored forms, and runs under them."""

import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from src.bench.peers import read_peers
from src.errors import UserError
from src.models.optim.adamw import AdamW
from src.models.optim.base import build_optimizer
from src.models.optim.muon import Muon
from src.reporting.report import build_report
from src.settings.read import read_settings
from src.training.provenance import config_hash
from tests.faulty import faulty
from tests.runs import DDP, SMALL, begin, computed, kill_after, make_shards, metrics, result, run, same_weights
from tests.support import composed_settings, options, tiny_gpt, tokens

LEAN = [*SMALL, "samples.tokens=0", "check=off"]
MUON = [*LEAN, "optimizer=muon"]
PLAIN = {"lr", "min_lr", "warmup_steps", "weight_decay", "betas", "eps", "grad_clip"}


# ---- keys


def test_muon_has_adamws_keys_and_its_own() -> None:
    adamw, muon = (composed_settings(f"optimizer={name}").config["optimizer"] for name in ("adamw", "muon"))
    assert set(adamw) == PLAIN
    assert set(muon) == {*PLAIN, "muon"}
    assert {key: muon[key] for key in PLAIN} == adamw
    assert set(muon["muon"]) == {"momentum", "ns_steps", "lr_scale"}


def test_a_stored_configuration_without_targets_is_adamw_and_cosine() -> None:
    stored = OmegaConf.create(composed_settings().config)
    assert "schedule" not in stored
    assert set(stored.optimizer) == PLAIN
    settings = read_settings(stored)  # type: ignore[arg-type]  # a mapping
    assert settings.optimizer.method.func is AdamW  # type: ignore[attr-defined]  # a partial
    assert settings.schedule == composed_settings().schedule
    assert settings.config == composed_settings().config


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=muon"],
        ["schedule=wsd"],
        ["optimizer.weight_decay=0", "optimizer.grad_clip=.inf", "optimizer.lr=1"],
        ["optimizer=torch", "optimizer._target_=torch.optim.SGD", "+optimizer.momentum=0.9"],
        ["optimizer.groups=[{pattern: h.0.*, lr_scale: 0.5}]"],
    ],
)
def test_a_stored_configuration_reads_as_the_one_it_came_from(overrides: list[str]) -> None:
    settings = composed_settings(*overrides)
    again = read_settings(OmegaConf.create(settings.config))  # type: ignore[arg-type]  # a mapping
    assert again.config == settings.config
    assert again.schedule == settings.schedule
    ours, theirs = settings.optimizer.method, again.optimizer.method
    assert (ours.func, ours.keywords) == (theirs.func, theirs.keywords)  # type: ignore[attr-defined]  # partials


#: `config_hash` as version 0.1.0 computed it.
HASHES = {
    "adamw": "1a7d96a2ce1ee9a85330d9bb9a860d9da653723a5bae748a8794300a01578d2f",
    "muon": "c91cfbb3b1aa9928534556c651e925c5eaf8eea44708cb3dbe8220d7194c5f39",
}


@pytest.mark.parametrize("name", HASHES)
def test_the_hash_of_a_configuration_is_that_of_version_0_1_0(name: str) -> None:
    config = composed_settings(f"optimizer={name}", "trainer.threads=1", "trainer.onednn=false").config
    assert config_hash(config) == HASHES[name]


def test_an_experiments_rates_hold_under_muon() -> None:
    settings = composed_settings("experiment=residual_reference", "optimizer=muon", "evaluation=none")
    assert (settings.optimizer.lr, settings.optimizer.warmup_steps) == (3e-4, 541)
    assert settings.optimizer.method.func is Muon  # type: ignore[attr-defined]  # a partial


@pytest.mark.parametrize("name", options("schedule"))
def test_every_schedule_takes_its_rates_from_the_optimizer_section(name: str) -> None:
    settings = composed_settings(
        f"schedule={name}", "optimizer.lr=0.5", "optimizer.min_lr=0.125", "optimizer.warmup_steps=2"
    )
    assert settings.schedule.lr(1) == 0.5
    assert settings.schedule.lr(79) == (0.5 if name == "constant" else 0.125)


SGD = ["optimizer=torch", "optimizer._target_=torch.optim.SGD"]


def test_any_optimizer_of_torch_works_by_its_target() -> None:
    settings = composed_settings(*SGD, "+optimizer.momentum=0.9", "optimizer.lr=0.1")
    optimizer = build_optimizer(tiny_gpt(), settings.optimizer)
    assert type(optimizer) is torch.optim.SGD
    assert [(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.9, 0.1),
        (0.9, 0.0),
    ]


def test_an_optimizer_from_another_package_needs_no_edit_here() -> None:
    target = "optimizer._target_=tests.settings.sign_sgd.SignSGD"
    keys = ["optimizer=torch", target, "+optimizer.momentum=0.5"]
    with pytest.raises(UserError, match=r"trusted_targets=\[tests\]"):
        composed_settings(*keys)
    settings = composed_settings(*keys, "trusted_targets=[tests]")
    gpt = tiny_gpt()
    optimizer = build_optimizer(gpt, settings.optimizer)
    before = [p.detach().clone() for p in gpt.parameters()]
    gpt.loss(tokens(), tokens(seed=1)).backward()
    optimizer.step()
    assert not any(torch.equal(p, was) for p, was in zip(gpt.parameters(), before, strict=True))


def test_group_rules_reach_the_optimizer() -> None:
    rules = "optimizer.groups=[{pattern: h.*.attn.*, lr_scale: 0.5, betas: [0.8, 0.9]}]"
    optimizer = build_optimizer(tiny_gpt(), composed_settings(rules).optimizer)
    assert [(g["lr_scale"], g["betas"]) for g in optimizer.param_groups] == [
        (1.0, (0.9, 0.95)),
        (0.5, (0.8, 0.9)),
        (1.0, (0.9, 0.95)),
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["optimizer=muon", "optimizer.muon.momentum=1"],
            r"optimizer\.muon\.momentum must be in \[0, 1\), got 1",
        ),
        (
            ["optimizer=muon", "optimizer.muon.ns_steps=0"],
            r"optimizer\.muon\.ns_steps must be at least 1 and below 100",
        ),
        (["optimizer=muon", "optimizer.muon.ns_steps=5.5"], r"optimizer\.muon\.ns_steps must be int, got 5\.5"),
        (["optimizer=muon", "optimizer.muon.lr_scale=0"], r"optimizer\.muon\.lr_scale must be positive, got 0"),
        (
            ["optimizer=muon", "optimizer.muon.lr_scale=fast"],
            r"optimizer\.muon\.lr_scale must be float, got 'fast'",
        ),
        (["optimizer=muon", "optimizer.muon=null"], r"optimizer\.muon must be a section of keys"),
        (
            ["optimizer=muon", "+optimizer.muon.momentun=0"],
            r"momentun is not a key, did you mean optimizer\.muon\.momentum\?",
        ),
        (["optimizer=muon", "optimizer.lr=-1"], r"optimizer\.lr must be positive"),
        (["optimizer=muon", "~optimizer.muon.ns_steps"], r"optimizer\.muon\.ns_steps is missing"),
        (["+optimizer.beta=0"], r"optimizer\.beta is not a key, did you mean optimizer\.betas\?"),
        (["optimizer.betas=[0.9,1.0]"], r"optimizer\.betas must each be in \[0, 1\)"),
        (["optimizer=torch"], r"optimizer\._target_ has no value"),
        (
            ["optimizer._target_=torch.optim.SGD"],
            r"optimizer\.betas is not an argument of torch\.optim\.SGD; optimizer=torch",
        ),
        (
            [*SGD, "+optimizer.momentun=0.9"],
            r"momentun is not an argument of torch\.optim\.SGD, did you mean momentum\?",
        ),
        ([*SGD, "+optimizer.momentum=-1"], r"optimizer: torch\.optim\.SGD: Invalid momentum value: -1"),
        (
            ["optimizer=torch", "optimizer._target_=torch.optim.LBFGS"],
            r"optimizer: torch\.optim\.LBFGS: .*closure",
        ),
        (
            ["optimizer=torch", "optimizer._target_=torch.optim.Rprop"],
            r"optimizer\.weight_decay must be 0 with torch\.optim\.Rprop",
        ),
        (
            ["optimizer=torch", "optimizer._target_=torch.nn.Linear"],
            r"must be a torch\.optim\.optimizer\.Optimizer",
        ),
        (
            ["optimizer.groups=[{pattern: h.*, betta: 1}]"],
            r"groups\.0\.betta is not an option .*AdamW, did you mean betas\?",
        ),
        (
            ["optimizer.groups=[{pattern: h.*, betas: [0.9, 2.0]}]"],
            r"optimizer\.betas must each be in \[0, 1\)",
        ),
        (
            ["optimizer.groups=[{pattern: h.*, lr_scale: -1}]"],
            r"lr_scale must be .*at least 0",
        ),
        (["optimizer.groups=[{lr_scale: 1}]"], r"optimizer\.groups\.0 must have a pattern and an option"),
        (["optimizer.groups=h"], r"optimizer\.groups must be list"),
        (["schedule=wsd", "schedule.decay_share=2"], r"schedule\.decay_share must be in \(0, 1\], got 2"),
        (
            ["schedule=wsd", "schedule.decay_shape=cubic"],
            r"schedule\.decay_shape must be one of .*, got cubic",
        ),
        (["schedule=wsd", "~schedule.decay_share"], r"schedule\.decay_share is missing"),
        (
            ["+schedule.decay_share=0.5"],
            r"schedule\.decay_share is not a key of this configuration but of schedule=wsd",
        ),
        (["schedule._target_=torch.nn.Linear", "+schedule.in_features=1"], r"schedule\."),
    ],
)
def test_a_wrong_value_is_named_with_its_key(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        composed_settings(*overrides)
    assert "\n" not in str(error.value)


def test_a_peer_under_another_optimizer_is_an_error() -> None:
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
def test_a_sweep_trains_under_each_optimizer_and_a_report_lists_the_difference(sweep: Path) -> None:
    adamw, muon = metrics(sweep / "0"), metrics(sweep / "1")
    assert adamw[0]["train/loss"] == muon[0]["train/loss"]
    assert adamw[-1]["train/loss"] != muon[-1]["train/loss"] < muon[0]["train/loss"]
    assert len(muon) == 12
    sizes = [(sweep / job / "checkpoints/last.ckpt").stat().st_size for job in ("0", "1")]
    assert sizes[1] < sizes[0]
    without = " ".join(f"optimizer.muon.{key}=-" for key in ("lr_scale", "momentum", "ns_steps"))
    report = build_report([sweep], f"x {without}", ["residual"])
    assert {"optimizer.muon.momentum", "optimizer.muon.lr_scale"} <= {found.key for found in report.differences}
    fair = build_report([sweep], f"x {without}", ["residual", "optimizer"])
    assert not any(found.key.startswith("optimizer") for found in fair.differences)


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(sweep: Path, shards: Path, tmp_path: Path) -> None:
    process = begin(*MUON, "name=x", f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert kill_after(6, tmp_path / "r", process, signal.SIGKILL) == -signal.SIGKILL
    saved = [int(path.stem.removeprefix("step")) for path in (tmp_path / "r").glob("checkpoints/step*.ckpt")]
    done = run("resume=r", "optimizer=adamw", cwd=tmp_path)
    assert (done.returncode, "keeps the optimizer of the stored run" in done.stderr) == (2, True)
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "r")["resumed_at"] == [max(saved)]
    assert max(saved) < 12
    assert computed(tmp_path / "r") == computed(sweep / "1")
    assert same_weights(tmp_path / "r", sweep / "1")


@pytest.mark.slow
def test_two_ranks_hold_the_same_weights_and_roll_back_together(shards: Path, tmp_path: Path) -> None:
    keys = [*DDP, *faulty("poison", 9, tmp_path), f"data.path={shards}", "guard=rollback", "hydra.run.dir=r"]
    done = run(*MUON, *keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr  # the guard compares their weights at every save
    stated = result(tmp_path / "r")
    assert stated["world_size"] == 2
    assert [(event["at"], event["to"]) for event in stated["rollbacks"]] == [(10, 8)]
    assert [row["step"] for row in metrics(tmp_path / "r")] == list(range(1, 13))
