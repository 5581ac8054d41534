"""A run that cannot fit the memory is rejected before anything is built; others are not."""

import dataclasses
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.checks.cost import count_kept_bytes
from src.checks.quick import build_subject
from src.errors import UserError
from src.settings.read import Settings
from src.training import memory
from src.training.memory import Memory, check_memory, estimate_kept, read_host_bytes
from tests.runs import SMALL, error_lines, run
from tests.support import composed_settings, options

MIB = 2**20
#: Strategies that keep the most per token; the others are tested with the marker stress.
HEAVY = ("vanilla", "hyperconn", "mhc", "muddformer", "attnres", "generalized_hyperconn", "deep_cross_attention")


def machine(monkeypatch: pytest.MonkeyPatch, total: int, free: int, ranks: int = 1) -> None:
    monkeypatch.setattr(memory, "_read_memory", lambda settings: Memory("this machine's memory", total, free, ranks))


def tiny(**sizes: Any) -> Settings:
    settings = composed_settings("evaluation=none")
    return dataclasses.replace(settings, model=dataclasses.replace(settings.model, **sizes))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["model.n_layer=1000", "model.n_embd=65536"], "model.n_layer=1000, model.n_embd=65536"),
        (["model.vocab_size=1000000000000"], "model.vocab_size=1000000000000 make at least"),
        (
            ["data.micro_batch_size=1073741824", "data.global_batch_size=1073741824"],
            "lower data.micro_batch_size",
        ),
    ],
)
def test_a_model_that_no_machine_holds_is_rejected(keys: list[str], words: str) -> None:
    with pytest.raises(UserError) as rejected:
        check_memory(composed_settings("evaluation=none", *keys))
    assert words in str(rejected.value)
    assert "this machine's memory has" in str(rejected.value)


def test_the_rejection_is_one_line_before_anything_is_built(tmp_path: Path) -> None:
    done = run(*SMALL, "model.n_layer=1000", "model.n_embd=65536", "hydra.run.dir=r", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(error_lines(done)) == 1
    assert "parameters, which take 500.0 TiB" in done.stderr
    assert not (tmp_path / "r/result.json").exists()


def test_parameters_are_count_params_to_the_byte_and_for_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tiny()
    need = 16 * 7_636_608
    for ranks, size in ((1, "116.5"), (3, "349.6")):
        machine(monkeypatch, need * ranks, need * ranks * 9, ranks)
        check_memory(settings)
        machine(monkeypatch, need * ranks - 1, need * ranks * 9, ranks)
        with pytest.raises(UserError, match=f"7,636,608 parameters, which take {re.escape(size)} MiB"):
            check_memory(settings)


def test_a_run_that_may_not_fit_logs_a_warning_and_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = tiny()
    with caplog.at_level(logging.WARNING):
        machine(monkeypatch, 2**40, 200 * MIB)
        check_memory(settings)
        assert caplog.messages == []
        machine(monkeypatch, 2**40, 130 * MIB)
        check_memory(settings)
    assert len(caplog.messages) == 1
    assert "may not fit" in caplog.messages[0]
    assert "data.micro_batch_size (now 8)" in caplog.messages[0]


@pytest.mark.parametrize("residual", ["vanilla", "attnres", "mhc", "muddformer"])
def test_activations_of_a_deep_model_follow_from_shallow_ones(residual: str) -> None:
    subject = build_subject(composed_settings(f"residual={residual}", "evaluation=none"))
    model = dataclasses.replace(subject.config, n_layer=9, n_embd=16, block_size=16, vocab_size=64)
    counted = count_kept_bytes(subject, model, 2, bf16=False)[0]
    assert estimate_kept(subject, model, 2, bf16=False) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    "residual",
    [name if name in HEAVY else pytest.param(name, marks=pytest.mark.stress) for name in options("residual")],
)
def test_the_crude_bound_is_an_upper_bound(residual: str) -> None:
    subject = build_subject(composed_settings(f"residual={residual}", "evaluation=none"))
    model = dataclasses.replace(subject.config, n_layer=4, n_embd=64, block_size=64, vocab_size=64)
    tokens_layers_channels = 2 * 64 * 4 * 64
    assert count_kept_bytes(subject, model, 2, bf16=False)[0] < memory.CRUDE_BYTES * tokens_layers_channels


def test_the_limit_of_a_container_replaces_the_total_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    total, free = read_host_bytes()
    assert 0 < free <= total
    monkeypatch.setattr(memory, "_read_limits", lambda: [(2**30, 2**20), (2**62, 0)])
    assert read_host_bytes() == (2**30, min(free, 2**30 - 2**20))


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("0::/slurm/job_7/step_0/task_1", ("memory.max", "memory.current")),
        ("3:memory:/slurm/job_7/step_0/task_1", ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")),
    ],
)
def test_the_limit_of_a_group_above_the_own_one_counts(line: str, names: tuple[str, str], tmp_path: Path) -> None:
    kinds = Path(names[0]).parent
    (tmp_path / kinds / "slurm/job_7/step_0/task_1").mkdir(parents=True)
    for folder, limit in (("slurm/job_7", "4096"), ("slurm/job_7/step_0", "max"), ("", "8192")):
        for name, text in zip(names, (limit, "1024"), strict=True):
            (tmp_path / kinds / folder / Path(name).name).write_text(f"{text}\n")
    (tmp_path / "cgroup").write_text(f"{line}\n")
    assert memory._read_limits(tmp_path / "cgroup", tmp_path) == [(4096, 1024), (8192, 1024)]


def test_rank_0_asks_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: asked.append(index) or (2**30, 2**31))
    settings: Any = SimpleNamespace(trainer=SimpleNamespace(accelerator="gpu", devices=8))
    assert memory._read_memory(settings) == Memory("the GPU", 2**31, 2**30, 1)
    assert asked == [0]
