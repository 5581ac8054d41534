"""Sharded checkpoints: read as they were saved, or rejected; on a mesh of one rank in this process."""

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from src.callbacks import sharded_checkpoint
from src.callbacks.checkpoints import AtomicCheckpointIO, link_over, read_checkpoint
from src.callbacks.sharded_checkpoint import MANIFEST, write_sharded
from src.errors import CheckpointError
from src.files import sha256_file
from tests.callbacks.test_checkpoints import Hostile

WEIGHT = torch.arange(12.0).view(4, 3)


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start a process group of one rank."""
    store = distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def content() -> dict[str, Any]:
    """Return a checkpoint as Lightning makes it, of float32 and bfloat16 shards, plain tensors and values."""

    def shard(tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Shard(0)])

    state = {0: {"step": torch.tensor(3.0), "exp_avg": shard(WEIGHT + 1)}}
    return {
        "state_dict": OrderedDict({"gpt.weight": shard(WEIGHT), "gpt.half": shard(WEIGHT.bfloat16())}),
        "optimizer_states": [{"state": state, "param_groups": [{"lr": 0.1, "params": [0], "betas": (0.9, 0.95)}]}],
        "reslab": {"step": 3},
    }


def saved(path: Path) -> Path:
    write_sharded(content(), path)
    return path


def test_it_reads_as_a_checkpoint_of_one_file(tmp_path: Path) -> None:
    found = read_checkpoint(saved(tmp_path / "step00000003.ckpt"))
    assert list(found["state_dict"]) == ["gpt.weight", "gpt.half"]
    assert torch.equal(found["state_dict"]["gpt.weight"], WEIGHT)
    assert found["state_dict"]["gpt.half"].dtype == torch.bfloat16
    (optimizer,) = found["optimizer_states"]
    assert torch.equal(optimizer["state"][0]["exp_avg"], WEIGHT + 1)
    assert optimizer["state"][0]["step"] == 3
    assert optimizer["param_groups"] == [{"lr": 0.1, "params": [0], "betas": (0.9, 0.95)}]
    assert found["reslab"] == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["step00000003.ckpt"]  # no temporary folder is left


def test_every_damage_is_rejected(tmp_path: Path) -> None:
    for number, name in enumerate(("plain.pt", ".metadata", "__0_0.distcp")):
        path = saved(tmp_path / f"step{number}.ckpt") / name
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=rf"damaged, the SHA-256 of {name} is not the one in {MANIFEST}"):
            read_checkpoint(path.parent)
        path.unlink()
        with pytest.raises(ValueError, match=rf"not a whole checkpoint \({name} is missing\)"):
            read_checkpoint(path.parent)
    (tmp_path / "step0.ckpt" / MANIFEST).unlink()
    with pytest.raises(ValueError, match=rf"not a whole checkpoint \(no {MANIFEST}\)"):
        read_checkpoint(tmp_path / "step0.ckpt")


def test_metadata_that_would_run_code_is_rejected(tmp_path: Path) -> None:
    folder = saved(tmp_path / "step1.ckpt")
    before = sha256_file(folder / ".metadata")
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile()))
    manifest = folder / MANIFEST
    manifest.write_text(manifest.read_text().replace(before, sha256_file(folder / ".metadata")))
    with pytest.raises(ValueError, match=r"builtins\.exec is not part of a checkpoint"):
        read_checkpoint(folder)


def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "step1.ckpt")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharded_checkpoint, "write_atomic", fail)
    with pytest.raises(CheckpointError, match=r"step1\.ckpt cannot be written: rank 0: .*No space left"):
        write_sharded(content(), folder)
    assert read_checkpoint(folder)["reslab"] == {"step": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["step1.ckpt"]


def test_a_second_name_follows_and_a_file_may_take_it(tmp_path: Path) -> None:
    first, second, last = saved(tmp_path / "step1.ckpt"), saved(tmp_path / "step2.ckpt"), tmp_path / "last.ckpt"
    files = AtomicCheckpointIO()
    files.save_checkpoint({"step": 0}, tmp_path / "step0.ckpt")
    for target in (tmp_path / "step0.ckpt", first, second):
        link_over(target, last)
        assert last.samefile(target)
        assert read_checkpoint(last)
    link_over(tmp_path / "step0.ckpt", last)
    assert read_checkpoint(last) == {"step": 0}
    assert first.is_dir()
    files.remove_checkpoint(first)
    assert not first.exists()
