"""Training runs from outside: files, interruption and resume, ranks, sweeps, exit codes.

Covers `src/callbacks/stream_log.py`, `src/reporting/stream_figures.py` and `src/tasks/train.py` too.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from src import __version__
from tests.robust.support import no_process_of
from tests.runs import (
    DDP,
    ROOT,
    SMALL,
    begin,
    computed,
    error_lines,
    kill_after,
    make_shards,
    metrics,
    result,
    run,
    same_weights,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was never stopped."""
    cwd = tmp_path_factory.mktemp("whole")
    keys = [*SMALL, "trainer.stream_pictures=true"]
    done = run(*keys, f"data.path={shards}", "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


def test_a_run_leaves_all_its_files(whole: Path) -> None:
    for name in ("config.yaml", "run.log", "metrics.jsonl", "result.json", "checkpoints/last.ckpt"):
        assert (whole / name).is_file(), name
    assert {p.name for p in (whole / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert (whole / "checkpoints/best.ckpt").is_file()
    assert list((whole / "tensorboard").glob("events.*"))
    assert (whole / "figures/loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_result_has_status_and_figures(whole: Path) -> None:
    stated = result(whole)
    assert stated["status"] == "completed"
    assert stated["steps"] == 12
    assert stated["tokens"] == 12 * 4 * 32
    assert stated["val_loss"] == metrics(whole)[-1]["val/loss"]
    for key in ("reason", "n_params", "seconds", "tokens_per_s", "peak_memory_bytes", "seed", "config_hash"):
        assert key in stated, key
    assert stated["versions"]["torch"] == torch.__version__
    assert stated["versions"]["reslab"] == __version__
    assert len(stated["data"]["hash"]) == 64


def test_metrics_are_a_row_a_step_with_their_fields(whole: Path) -> None:
    rows = metrics(whole)
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row in rows:
        assert set(row) >= {"step", "tokens", "train/loss", "lr", "grad_norm", "tokens_per_s"}
    assert [row["step"] for row in rows if "val/loss" in row] == [6, 12]
    assert rows[-1]["lr"] == pytest.approx(1e-4)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_the_stream_is_measured_at_each_validation(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "stream.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [6, 12]
    for row in rows:
        assert len(row["mixing_KJ"]) == len(row["mixing_KJ"][0]) == len(row["explained_K"]) == 5
        assert len(row["branch_rms_S"]) == len(row["gradient_rms_S"]) == 4
    for name in ("mixing", "sizes"):
        assert (whole / f"figures/stream_{name}.png").stat().st_size > 1000


def test_the_stream_probe_changes_no_number_of_the_run(whole: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blind"
    done = run(*SMALL, f"data.path={shards}", "hydra.run.dir=blind", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert computed(folder) == computed(whole)
    assert not (folder / "stream.jsonl").exists()


def test_checkpoints_hold_tensors_and_plain_values_only(whole: Path) -> None:
    for name in ("last", "best"):
        checkpoint = torch.load(whole / f"checkpoints/{name}.ckpt", weights_only=True)
        assert not any("_orig_mod" in key for key in checkpoint["state_dict"])
    assert checkpoint["reslab"]["step"] == 12


def test_a_second_launch_into_a_run_is_rejected_and_changes_nothing(whole: Path, shards: Path) -> None:
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    done = run(*SMALL, f"data.path={shards}", f"hydra.run.dir={whole}", cwd=whole.parent)
    assert done.returncode == 2
    assert "holds a run already" in done.stderr
    assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before


def test_resuming_a_completed_run_does_nothing(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    done = run(f"resume={whole}", cwd=whole.parent)
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr
    assert (whole / "metrics.jsonl").read_bytes() == before


def pretend_code(folder: Path, code: dict[str, Any]) -> None:
    """Change the record as if other code had trained the run so far."""
    last = folder / "checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint["reslab"]["code"]["sources"] == result(folder)["code"][0]["sources"]
    checkpoint["reslab"]["code"] = code
    for path in folder.glob("checkpoints/*.ckpt*"):
        path.unlink()
    torch.save(checkpoint, last)
    stated = result(folder)
    stated["code"][0]["sources"] = code["sources"]
    (folder / "result.json").write_text(json.dumps(stated))


def test_a_completed_run_continues_to_a_later_end(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(whole, folder)
    own = result(folder)["code"][0]
    pretend_code(folder, {**own, "sources": "b" * 64, "git": "a" * 40})
    done = run(f"resume={folder}", "trainer.max_steps=15", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = (folder / "run.log").read_text()
    assert "changed on resume: trainer.max_steps 12 -> 15" in said
    assert "changed on resume: code aaaaaaaaaaaa -> " in said
    assert result(folder)["code"] == [{**own, "step": 0, "sources": "b" * 64}, {**own, "step": 12}]
    assert [row["step"] for row in metrics(folder)] == list(range(1, 16))
    assert computed(folder)[:12] == computed(whole)
    assert result(folder)["steps"] == 15


SLOW = [*SMALL, "trainer.max_steps=60"]


@pytest.fixture(scope="module")
def long(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a longer run that was never stopped."""
    cwd = tmp_path_factory.mktemp("long")
    done = run(*SLOW, f"data.path={shards}", "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


@pytest.mark.parametrize("step", [1, 17, 41])
def test_a_run_killed_at_any_step_resumes_bitwise(step: int, long: Path, shards: Path, tmp_path: Path) -> None:
    process = begin(*SLOW, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert kill_after(step, tmp_path / "r", process, signal.SIGKILL) == -signal.SIGKILL
    assert result(tmp_path / "r")["status"] == "running"
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert computed(tmp_path / "r") == computed(long)
    assert same_weights(tmp_path / "r", long)
    assert result(tmp_path / "r")["val_loss"] == result(long)["val_loss"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_checkpoints_and_the_run_resumes_bitwise(
    signum: int, code: int, long: Path, shards: Path, tmp_path: Path
) -> None:
    process = begin(*SLOW, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert kill_after(13, tmp_path / "r", process, signum) == code
    stated = result(tmp_path / "r")
    assert stated["status"] == "interrupted"
    saved = torch.load(tmp_path / "r/checkpoints/last.ckpt", weights_only=True)["reslab"]["step"]
    assert saved == stated["steps"] >= 13
    assert f"{stated['reason']}; continue with: python run.py resume=" in (tmp_path / "r/run.log").read_text()
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert computed(tmp_path / "r") == computed(long)
    assert same_weights(tmp_path / "r", long)


def test_a_run_that_diverges_stops_there_with_code_3(shards: Path, tmp_path: Path) -> None:
    done = run(
        *SMALL,
        f"data.path={shards}",
        "hydra.run.dir=r",
        "optimizer.lr=1e30",
        "optimizer.warmup_steps=0",
        "optimizer.weight_decay=1e10",
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    stated = result(tmp_path / "r")
    assert stated["status"] == "diverged"
    assert "step" in stated["reason"]
    assert stated["steps"] < 12
    assert "val_loss" not in stated


@pytest.fixture(scope="module")
def two_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("ddp")
    done = run(*SMALL, *DDP, f"data.path={shards}", "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


def test_two_ranks_give_the_losses_of_one(two_ranks: Path, whole: Path) -> None:
    assert result(two_ranks)["world_size"] == 2
    for two, one in zip(metrics(two_ranks), metrics(whole), strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=2e-6)
        assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
        if "val/loss" in one:
            assert two["val/loss"] == pytest.approx(one["val/loss"], rel=2e-6)


def test_two_ranks_killed_resume_bitwise(two_ranks: Path, shards: Path, tmp_path: Path) -> None:
    process = begin(*SMALL, *DDP, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert kill_after(7, tmp_path / "r", process, signal.SIGKILL) == -signal.SIGKILL
    assert no_process_of(tmp_path)
    done = run("resume=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert computed(tmp_path / "r") == computed(two_ranks)
    assert same_weights(tmp_path / "r", two_ranks)


def test_a_sweep_gives_a_folder_a_job_and_survives_a_failing_one(shards: Path, tmp_path: Path) -> None:
    done = run(
        "-m",
        *SMALL,
        *DDP,
        f"data.path={shards}",
        "hydra.sweep.dir=s",
        "trainer.max_steps=2",
        "optimizer.lr=1e-3,-1,2e-3",
        cwd=tmp_path,
    )
    assert done.returncode == 1
    jobs = sorted((tmp_path / "s").glob("*/"))
    assert [job.name for job in jobs] == ["0-vanilla", "2-vanilla"]  # a rejected job leaves no folder
    assert [result(job)["status"] for job in jobs] == ["completed"] * 2
    lines = [line for line in done.stdout.splitlines() if line.startswith("#")]
    assert len(lines) == 3
    assert "completed" in lines[0]
    assert "optimizer.lr must be positive, got -1" in lines[1]
    assert not list(tmp_path.glob("multirun"))


def test_a_user_error_is_one_line_and_exit_code_2(shards: Path, tmp_path: Path) -> None:
    done = run(*SMALL, f"data.path={shards}", "model.n_embd=33", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert "model.n_embd must be a multiple of model.n_head" in done.stderr
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("residual=hypercon", "did you mean hyperconn"),
        ("trainer.max_step=5", "did you mean trainer.max_steps"),
        ("+trainer.max_step=5", "did you mean trainer.max_steps"),
        ("residaul=vanilla", "did you mean residual"),
        ("resume=nowhere", "is not a run folder"),
    ],
)
def test_a_misspelt_override_is_rejected_with_the_nearest_name(override: str, words: str, tmp_path: Path) -> None:
    done = run(*SMALL, override, "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1, done.stderr
    assert words in done.stderr


def test_the_help_page_lists_every_group_and_the_keys(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("residual:", "hyperconn", "data.global_batch_size", "resume=<run folder>"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_closed_pipe_gives_no_traceback() -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    process = subprocess.Popen([sys.executable, str(ROOT / "run.py"), "--help"], stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (128 + signal.SIGPIPE, b"")


def test_a_run_exports_to_transformers_and_trains_on_from_there(whole: Path, shards: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    done = run("task=export", f"run={whole}", f"output={tmp_path}/hub", "hydra.run.dir=e", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "hub")
    weights = torch.load(whole / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(theirs.transformer.wte.weight, weights["gpt.embedding.wte.weight"])
    more = [
        *SMALL,
        f"data.path={shards}",
        f"init_from={tmp_path}/hub",
        "trainer.max_steps=1",
        "hydra.run.dir=r",
    ]
    done = run(*more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "r")[0]["train/loss"] < metrics(whole)[0]["train/loss"] - 0.15
    again = run("task=export", f"run={whole}", f"output={tmp_path}/hub", "hydra.run.dir=f", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_a_strategy_outside_the_project_needs_no_edit(shards: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/add-a-strategy.md").read_text()
    code = page.split("```python\n# mystrategies/halved.py, anywhere on PYTHONPATH", 1)[1].split("```", 1)[0]
    (tmp_path / "mystrategies").mkdir()
    (tmp_path / "mystrategies/halved.py").write_text(code)
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        done = run(
            *SMALL,
            f"data.path={shards}",
            "residual._target_=mystrategies.halved.Halved",
            "trusted_targets=[mystrategies]",
            "+residual.scale=0.5",
            "name=halved",
            "hydra.run.dir=r",
            cwd=tmp_path,
        )
    finally:
        del os.environ["PYTHONPATH"]
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "r")["name"] == "halved"


def test_a_bad_shard_is_one_line_with_its_place(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "shards")
    path = folder / "fineweb_train_000002.bin"
    path.write_bytes(path.read_bytes()[:-7])
    done = run(*SMALL, f"data.path={folder}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert (
        "fineweb_train_000002.bin: truncated, 21017 bytes where a header of 10000 tokens asks for 21024" in done.stderr
    )
    done = run(*SMALL, "data.path=nowhere", "hydra.run.dir=q", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.path=nowhere is neither a folder" in done.stderr


@pytest.fixture(scope="module")
def stopped(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its first checkpoint."""
    cwd = tmp_path_factory.mktemp("stopped")
    process = begin(*SLOW, f"data.path={shards}", "hydra.run.dir=r", cwd=cwd)
    kill_after(9, cwd / "r", process, signal.SIGKILL)
    return cwd / "r"


def damage(what: str, checkpoint: Path) -> None:
    raw = checkpoint.read_bytes()
    if what == "truncated":
        checkpoint.write_bytes(raw[: len(raw) // 2])
    elif what == "flipped":
        at = len(raw) // 2
        checkpoint.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    else:
        checkpoint.unlink()


@pytest.mark.parametrize(
    ("what", "words"),
    [
        pytest.param("truncated", "not a whole checkpoint", marks=pytest.mark.stress),
        ("flipped", "damaged"),
        pytest.param("gone", "is gone", marks=pytest.mark.stress),
    ],
)
def test_a_bad_checkpoint_falls_back_to_the_one_before_bitwise(
    what: str, words: str, stopped: Path, long: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(stopped, folder)
    damage(what, folder / "checkpoints/last.ckpt")
    newest, before = sorted(folder.glob("checkpoints/step*.ckpt"), reverse=True)
    damage(what, newest)
    done = run(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
    assert result(folder)["resumed_at"] == [int(before.stem.removeprefix("step"))]
    assert computed(folder) == computed(long)
    assert same_weights(folder, long)


def kept(path: Path) -> bool:
    """Whether a refused launch must leave the file as it was."""
    return path.name != "run.log" and not path.name.startswith(".lock")


@pytest.mark.parametrize(
    ("what", "words"),
    [("truncated", "not a whole checkpoint"), pytest.param("flipped", "damaged", marks=pytest.mark.stress)],
)
def test_bad_checkpoints_only_are_rejected_and_nothing_is_overwritten(
    what: str, words: str, stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "r"
    shutil.copytree(stopped, folder)
    for path in folder.glob("checkpoints/*.ckpt"):
        damage(what, path)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and kept(p)}
    done = run(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "no whole checkpoint is left" in done.stderr
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and kept(p)} == before


def test_a_run_whose_checkpoints_are_gone_is_not_started_again(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(stopped, folder)
    shutil.rmtree(folder / "checkpoints")
    done = run(f"resume={folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert "is gone" in done.stderr


def test_a_hostile_checkpoint_runs_nothing_and_falls_back(stopped: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    folder = tmp_path / "r"
    shutil.copytree(stopped, folder)
    for path in [folder / "checkpoints/last.ckpt", max(folder.glob("checkpoints/step*.ckpt"))]:
        torch.save({"reslab": Hostile()}, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n")
    done = run(f"resume={folder}", "trainer.max_steps=12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cannot be loaded" in done.stderr
    assert "resuming from the older checkpoint" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_other_data_and_another_model_are_rejected_on_resume(stopped: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(stopped, folder)
    other = make_shards(tmp_path / "shards", tokens=21_000)
    done = run(f"resume={folder}", f"data.path={other}", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.path holds other data than the run was trained on" in done.stderr
    assert "give data.accept_changed=true" in done.stderr
    done = run(f"resume={folder}", "data.val_tokens=512", cwd=tmp_path)
    assert done.returncode == 2
    assert "the run was trained on other data: data.val_tokens was 1024, is 512; restore these keys" in done.stderr
    done = run(f"resume={folder}", "model.n_layer=3", cwd=tmp_path)
    assert done.returncode == 2
    assert "model.n_layer was 2, is 3" in done.stderr
    done = run(f"resume={folder}", "trainer.max_step=100", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean trainer.max_steps" in done.stderr


@pytest.mark.stress  # in tests/tasks/test_elastic.py ranks come and go
def test_a_run_on_one_rank_resumes_on_two(stopped: Path, long: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(stopped, folder)
    done = run(f"resume={folder}", "trainer.devices=2", "trainer.strategy=ddp", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = computed(folder)
    assert [row["step"] for row in rows] == list(range(1, 61))
    for two, one in zip(rows, computed(long), strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-5)


def test_recomputed_activations_give_the_losses_of_kept_ones(whole: Path, shards: Path, tmp_path: Path) -> None:
    keys = ["trainer.checkpoint_activations=true", "trainer.max_steps=3", "check=off", "samples.tokens=0"]
    done = run(*SMALL, *keys, "optimizer.warmup_steps=1", f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ours, kept = ([row["train/loss"] for row in metrics(folder)] for folder in (tmp_path / "r", whole))
    assert ours[0] == kept[0]
    assert ours == pytest.approx(kept[:3], rel=1e-3)  # the schedule of the other run is longer


def test_bf16_and_compile_give_nearly_the_losses_of_float32(whole: Path, shards: Path, tmp_path: Path) -> None:
    keys = [
        "trainer.precision=bf16-mixed",
        "trainer.compile=true",
        "trainer.max_steps=3",
        "check=off",
        "samples.tokens=0",
    ]
    warm = "optimizer.warmup_steps=1"  # as in the run that it is compared with
    done = run(*SMALL, *keys, warm, f"data.path={shards}", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for ours, plain in zip(metrics(tmp_path / "r"), metrics(whole), strict=False):
        assert ours["train/loss"] == pytest.approx(plain["train/loss"], rel=2e-2)
    weights = torch.load(tmp_path / "r/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(value.dtype == torch.float32 for value in weights.values())
    assert not any("_orig_mod" in key for key in weights)
