"""The identity of the code that trained a run."""

import json
import logging
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from src.kernels import cpu_matmul
from src.settings.read import read_settings
from src.training import provenance
from src.training.provenance import code_by_step, code_identity, config_hash, warn_about_other_code


def test_the_identity_follows_every_source_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for folder in ("src/kernels/depth_attention", "src/kernels/include"):
        (tmp_path / folder).mkdir(parents=True)

    def identity_with(name: str, text: str) -> str | None:
        (tmp_path / name).write_text(text)
        return code_identity.__wrapped__()["sources"]

    seen = [
        identity_with(name, text)
        for name in ("src/one.py", "src/kernels/depth_attention/depth.cpp", "src/kernels/include/rows.h")
        for text in ("1", "2")
    ]
    assert len(set(seen)) == 6
    assert identity_with("README.md", "words") == seen[-1]
    assert code_identity.__wrapped__()["git"] is None


def test_a_change_of_code_is_one_entry_from_its_step_on(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {"git": None, "sources": "a" * 64}
    monkeypatch.setattr(provenance, "code_identity", lambda: codes)
    first = code_by_step([], 0)
    assert code_by_step(first, 40) == first == [{"step": 0, "git": None, "sources": "a" * 64}]
    codes["sources"] = "b" * 64
    assert code_by_step(first, 40) == [*first, {"step": 40, "git": None, "sources": "b" * 64}]
    assert code_by_step(code_by_step(first, 40), 20)[1]["step"] == 20  # rolled back before the change


@pytest.mark.parametrize(
    ("then", "told"),
    [
        (
            {"git": "f" * 40, "sources": "0" * 64},
            "code ffffffffffff -> eeeeeeeeeeee-dirty (sources aaaaaaaaaaaa)",
        ),
        ({"git": None, "sources": "0" * 64}, "code sources 000000000000 -> eeeeeeeeeeee-dirty"),
        ({"git": "f" * 40, "sources": "a" * 64}, ""),  # the commit changed something else
        (None, ""),  # written before checkpoints said so
    ],
)
def test_other_code_is_reported_in_one_line(
    then: dict[str, str] | None, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = {"git": "e" * 40 + "-dirty", "sources": "a" * 64}
    monkeypatch.setattr(provenance, "code_identity", lambda: now)
    with caplog.at_level(logging.WARNING):
        warn_about_other_code(then)
    assert len(caplog.messages) == bool(told)
    assert told in "".join(caplog.messages)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_configuration_of_version_0_1_0_keeps_its_hash(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_matmul, "why_not_onednn", lambda: None)  # the stored run was on such a processor
    folder = Path(__file__).parent / "stored_run" / optimizer
    config = OmegaConf.load(folder / "config.yaml")
    assert isinstance(config, DictConfig)
    settings = read_settings(config)
    assert config_hash(settings.config) == json.loads((folder / "result.json").read_text())["config_hash"]
