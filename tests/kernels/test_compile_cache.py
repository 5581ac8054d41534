"""Folder of compiled code."""

import os
from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir

from src.kernels.compile_cache import INDUCTOR_CACHE, cache_folder, describe_processor, keep_compiled


@pytest.fixture(autouse=True)
def _no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INDUCTOR_CACHE, "")  # so that pytest restores it
    monkeypatch.delenv(INDUCTOR_CACHE)


def test_the_compiler_keeps_its_results_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_compiled()
    folder = Path(cache_dir())
    assert folder.is_dir()
    assert folder.parent == cache_folder() == tmp_path / "cache/reslab"


def test_unlike_processors_have_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert describe_processor() == describe_processor() != ""
    folders = set()
    for kind in ("one", "other", "one"):
        monkeypatch.delenv(INDUCTOR_CACHE, raising=False)
        monkeypatch.setattr("src.kernels.compile_cache.describe_processor", lambda kind=kind: kind)
        keep_compiled()
        folders.add(os.environ[INDUCTOR_CACHE])
    assert len(folders) == 2


def test_a_folder_in_the_environment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(INDUCTOR_CACHE, str(tmp_path / "named"))
    keep_compiled()
    assert os.environ[INDUCTOR_CACHE] == str(tmp_path / "named")


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_torchs_default_stays_if_nothing_can_be_written(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if place == "a file":
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as it is without a home folder
    keep_compiled()
    assert cache_folder() is None
    assert INDUCTOR_CACHE not in os.environ
