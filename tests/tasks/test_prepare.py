"""task=prepare through run.py: exit codes, one line for an error, kill -9, and a training on the result."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from src.tasks.prepare import format_training
from tests.runs import ROOT, SMALL, begin, error_lines, result, run

TEXT = "It was the {} time that somebody wrote this sentence about naïve cats. "


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    with path.open("w") as file:
        for i in range(20_000):
            file.write(json.dumps({"text": TEXT.format(i) * (1 + i % 7)}) + "\n")
    return path


KEYS = ["task=prepare", "prepare.processes=2", "prepare.shard_tokens=100000", "prepare.val_tokens=50000"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_exited(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.slow
def test_after_kill_9_running_again_writes_the_same_bytes(texts: Path, tmp_path: Path) -> None:
    keys = [*KEYS, f"prepare.source={texts}"]
    done = run(*keys, f"prepare.output={tmp_path / 'whole'}", "hydra.run.dir=a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "20,000 documents" in done.stderr
    out = tmp_path / "out"
    process = begin(*keys, f"prepare.output={out}", "hydra.run.dir=b", cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not (out / "fineweb_train_000002.bin").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "manifest.json").exists()
    assert len(started) >= 2
    while not all(has_exited(pid) for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = run(*keys, f"prepare.output={out}", "hydra.run.dir=c", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "continuing after" in again.stderr
    assert contents(out) == contents(tmp_path / "whole")
    trained = run(*SMALL, "model.vocab_size=50304", "data=fineweb10b", f"data.path={out}", "data.val_tokens=1024",
                  "data.micro_batch_size=2", "data.global_batch_size=4", "hydra.run.dir=run", cwd=tmp_path)  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert result(tmp_path / "run")["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["prepare.source=nowhere"], "prepare.output is missing; give prepare.output=<value>"),
        (["prepare.output=out", "+prepare.shards=3"], "prepare.shards is not a key"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(overrides: list[str], words: str, tmp_path: Path) -> None:
    done = run("task=prepare", "data=fineweb10b", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert words in done.stderr


@pytest.mark.slow
def test_a_signal_stops_the_preparation_with_its_exit_code(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin(*KEYS, f"prepare.source={texts}", f"prepare.output={out}", cwd=tmp_path)
    deadline = time.monotonic() + 240
    while not (out / "fineweb_val_000000.bin").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert not list(out.glob(".*.part"))


def test_the_suggested_training_fits_the_tokenizer_and_the_shell() -> None:
    assert format_training("out", {"name": "gpt2", "n_vocab": 50257}) == "python run.py data.path=out"
    other = format_training("sh out", {"name": "bpe4k", "n_vocab": 4096})
    assert other == "python run.py 'data.path=sh out' model.vocab_size=4096"


@pytest.mark.parametrize("task", ["prepare", "tokenizer"])
def test_a_task_without_a_model_imports_no_torch(task: str) -> None:
    code = f"import sys, src.tasks.{task}; print({{'torch', 'lightning', 'scipy'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
