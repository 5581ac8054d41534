"""A run that streams prepared text from a bad server, on 1 rank, on 2, on 1 again: the losses of an unbroken run."""

import json
import lzma
import signal
import subprocess
import time
from pathlib import Path

import pytest

from src.datamodules.embedded_text import TEXT
from tests.datamodules.bad_server import serving
from tests.runs import ROOT, SMALL, begin, computed, result, run

pytestmark = pytest.mark.slow

ONE = ["trainer.devices=1", "trainer.strategy=auto"]
TWO = ["trainer.devices=2", "trainer.strategy=ddp"]


def documents() -> list[str]:
    """Real text: the sibling folder's where there is one, else the embedded one's."""
    shared = ROOT.parent / "shared" / "data" / "local" / "text" / "openstax_ccby4.jsonl.xz"
    with lzma.open(shared if shared.is_file() else TEXT, "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"][:20_000] for line, _ in zip(file, range(150), strict=False)]


def killed_after(step: int, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    rows = folder / "metrics.jsonl"
    while not rows.exists() or rows.read_text().count("\n") < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)


def test_ranks_may_come_and_go_while_shards_stream_from_a_bad_server(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in documents()))
    keys = ["prepare.shard_tokens=20000", "prepare.val_tokens=5000", "prepare.processes=1"]
    done = run("task=prepare", *keys, "prepare.source=t.jsonl", "prepare.output=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    keys = [*SMALL, "model.vocab_size=50304", "trainer.max_steps=30", "data.order=shard_shuffled"]
    done = run(*keys, f"data.path={tmp_path / 'out'}", "hydra.run.dir=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with serving(tmp_path / "out") as server:
        server.faults = ["drop", "corrupt", "", "cut"]
        keys = [
            *keys,
            f"data.path={server.address}",
            "data.cache=cache",
            "data.cache_gib=0.0002",
            "hydra.run.dir=r",
        ]
        killed_after(9, tmp_path / "r", begin(*keys, cwd=tmp_path))
        killed_after(18, tmp_path / "r", begin("resume=r", *TWO, cwd=tmp_path))
        done = run("resume=r", *ONE, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert server.faults == []
    found, expected = computed(tmp_path / "r"), computed(tmp_path / "whole")
    assert [row["step"] for row in found] == list(range(1, 31))
    for a, b in zip(found, expected, strict=True):
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-5)
    assert len(result(tmp_path / "r")["resumed_at"]) == 2
    assert result(tmp_path / "r")["data"]["hash"] == result(tmp_path / "whole")["data"]["hash"]
