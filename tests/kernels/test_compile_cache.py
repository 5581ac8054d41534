"""Where machine code is kept."""

import os
from pathlib import Path

import pytest
from torch._inductor.runtime.cache_dir_utils import cache_dir

from src.kernels.compile_cache import OF_TORCH, cache_folder, keep_compiled, processor


@pytest.fixture(autouse=True)
def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OF_TORCH, "")  # so that what is set here is undone
    monkeypatch.delenv(OF_TORCH)


def test_the_compiler_keeps_what_it_makes_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keep_compiled()
    folder = Path(cache_dir())
    assert folder.is_dir()
    assert folder.parent == cache_folder() == tmp_path / "cache/reslab"


def test_unlike_processors_keep_theirs_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert processor() == processor() != ""
    folders = set()
    for kind in ("one", "other", "one"):
        monkeypatch.delenv(OF_TORCH, raising=False)
        monkeypatch.setattr("src.kernels.compile_cache.processor", lambda kind=kind: kind)
        keep_compiled()
        folders.add(os.environ[OF_TORCH])
    assert len(folders) == 2


def test_a_place_that_is_given_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(OF_TORCH, str(tmp_path / "given"))
    keep_compiled()
    assert os.environ[OF_TORCH] == str(tmp_path / "given")


@pytest.mark.parametrize("place", ["a file", "no home"])
def test_where_nothing_can_be_kept_torchs_own_place_serves(
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
    assert OF_TORCH not in os.environ
