"""The process that computes."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import OmegaConf

from src.kernels import compile_cache
from src.launch.job import Job
from src.training import process
from src.training.process import adapt_to_processor, prepare_process
from tests.runs import ROOT
from tests.support import composed_settings

# Steps whose tensors are all freed at their end; prints the pages that ten of them had cleared, before and after.
STEPS = """
import resource, torch
from src.training.process import keep_freed_memory
def step():
    return [torch.ones(2 * 2**20) for _ in range(4)]
def count_pages():
    for _ in range(3):
        step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(count_pages(), keep_freed_memory(), count_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has its own rules")
def test_freed_memory_serves_the_next_step() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        cwd=ROOT,
        # By default glibc gives it back or not, depending on what lies at the end of its heap; with this it does.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=True,
    )
    given_back, has_options, kept = done.stdout.split()
    assert has_options == "True"
    assert int(kept) < 100 < 10_000 < int(given_back)


@pytest.mark.parametrize(
    ("overrides", "stored", "kept"), [((), True, False), (("trainer.onednn=true",), True, True), ((), False, False)]
)
def test_a_resumed_run_continues_without_products_that_the_processor_lacks(
    overrides: tuple[str, ...],
    stored: bool,
    kept: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(process, "why_not_onednn", lambda: "it has none")
    job = Job(Path(), OmegaConf.create({"trainer": {"onednn": stored}}), resumes=True, overrides=overrides)
    adapt_to_processor(job)
    assert job.config.trainer.onednn is kept
    assert ("trainer.onednn true -> false, since it has none" in caplog.text) == (stored and not kept)


def test_lightning_does_not_advise_srun_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("keep_compiled", "keep_freed_memory", "choose_products"):
        monkeypatch.setattr(process, name, lambda *_: None)
    monkeypatch.setattr(process.torch, "set_num_threads", lambda n: None)
    with pytest.warns(match="The `srun` command is available"):
        SLURMEnvironment.detect()
    prepare_process(composed_settings().trainer)
    assert not SLURMEnvironment.detect()  # a warning would be an error here


def test_a_new_run_keeps_what_it_is_configured_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "why_not_onednn", lambda: "it has none")
    job = Job(Path(), OmegaConf.create({"trainer": {"onednn": True}}), resumes=False)
    adapt_to_processor(job)
    assert job.config.trainer.onednn is True


@pytest.mark.parametrize(
    ("flags", "precision", "in_float32"),
    [
        ("avx2", "bf16-mixed", True),
        ("avx2 avx512f", "bf16-mixed", True),
        ("avx512f avx512_bf16", "bf16-mixed", False),
        ("avx512f amx_bf16", "bf16-mixed", False),
        ("", "bf16-mixed", False),  # not an x86 processor, or unknown
        ("avx2", "32-true", False),
    ],
)
def test_bfloat16_products_without_instructions_for_them_are_computed_in_float32(
    flags: str,
    precision: str,
    in_float32: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\n")
    monkeypatch.setattr(compile_cache, "CPUINFO", tmp_path / "cpuinfo")
    calls: list[str] = []
    monkeypatch.setattr(process, "compute_in_float32", lambda: calls.append("in float32"))
    process.choose_products(composed_settings(f"trainer.precision={precision}").trainer)
    assert bool(calls) is in_float32
