"""task=evaluate: equal scores to the run's, identified by the checkpoint.

Covers `src/training/saved_weights.py` too.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from src.errors import UserError
from src.files import sha256_file
from src.launch.job import Job
from src.tasks import evaluate as task
from src.training.saved_weights import _list_checkpoints
from tests.runs import ROOT, SMALL, make_shards, result, run

#: A suite of one text, short enough for a test.
LAMBADA = [
    "evaluation=limited",
    "~evaluation.perplexity.wikitext2",
    "evaluation.perplexity.lambada.limit_tokens=128",
    "evaluation.lm_eval.tasks=[]",
]
TRAIN = [a for a in SMALL if not a.startswith(("evaluation=", "model.vocab_size="))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run whose strategy depends on the step, and evaluate it at its end."""
    cwd = tmp_path_factory.mktemp("trained")
    shards = make_shards(cwd / "shards")
    done = run(
        *TRAIN,
        *LAMBADA,
        "residual=prores",
        "residual.warmup_fraction=1.0",
        f"data.path={shards}",
        "hydra.run.dir=r",
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return cwd / "r"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    without_hashes = shutil.ignore_patterns("*.sha256")  # tests put other files in the checkpoints' places
    return Path(shutil.copytree(trained, tmp_path / "copied", ignore=without_hashes))


def evaluate(*overrides: str, cwd: Path) -> dict[str, Any]:
    """task=evaluate in this process; returns what it wrote into its own folder."""
    folder = Path(tempfile.mkdtemp(dir=cwd))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        keys = ["task=evaluate", "trainer=cpu", "trainer.threads=1", *LAMBADA, *overrides]
        config = compose("config", keys)
    task.run(Job(folder, config, resumes=False))
    stated: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return stated


def test_the_scores_equal_those_of_the_run(copied: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in copied.rglob("*") if p.is_file()}
    keys = ["task=evaluate", "trainer=cpu", "trainer.threads=1", *LAMBADA, f"run={copied}", "hydra.run.dir=e"]
    done = run(*keys, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lambada perplexity" in done.stderr
    (path,) = (copied / "evaluations").iterdir()
    stated = json.loads(path.read_text())
    assert stated["scores"]["perplexity"] == result(copied)["perplexity"]
    assert stated["step"] == 12
    sha256 = sha256_file(copied / "checkpoints/last.ckpt")
    assert stated["checkpoint"]["sha256"] == sha256
    assert path.name.startswith(f"step00000012-{sha256[:12]}-")
    assert stated["config_hash"] == result(copied)["config_hash"]
    assert (tmp_path / "e/evaluation.json").read_bytes() == path.read_bytes()
    assert {p: p.read_bytes() for p in copied.rglob("*") if p.is_file() and p != path} == before


def test_checkpoints_of_several_steps_make_a_curve(copied: Path, tmp_path: Path) -> None:
    best = copied / "checkpoints/best.ckpt"
    stored = torch.load(best, weights_only=True)
    stored["reslab"]["step"] = 6
    best.unlink()  # the same file as last.ckpt
    torch.save(stored, best)
    for which in ("best", "last"):
        evaluate(f"run={copied}", f"checkpoint={which}", cwd=tmp_path)
    found = [json.loads(p.read_text()) for p in sorted((copied / "evaluations").iterdir())]
    assert [e["step"] for e in found] == [6, 12]
    losses = [e["scores"]["perplexity"]["lambada"]["loss"] for e in found]
    assert losses[0] != losses[1]  # prores lets less of the branches in at step 6


def test_scored_items_stand_beside_the_scores_of_their_name(copied: Path, tmp_path: Path) -> None:
    keys = ["evaluation.lm_eval.tasks=[piqa]", "evaluation.lm_eval.limit=2"]
    evaluate(f"run={copied}", *keys, "evaluation.log_samples=true", cwd=tmp_path)
    (scores,) = (copied / "evaluations").glob("*.json")
    (samples,) = (copied / "evaluations").rglob("*.jsonl")
    assert samples == scores.with_suffix("") / "samples_piqa.jsonl"
    assert len(samples.read_text().splitlines()) == 2
    evaluate(f"run={copied}", *keys, cwd=tmp_path)  # the items are not part of what names the scores
    assert list((copied / "evaluations").glob("*.json")) == [scores]


def test_a_checkpoint_file_outside_a_run_is_scored_by_itself(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "checkpoints/last.ckpt", tmp_path / "mine.ckpt")
    stated = evaluate(f"checkpoint={tmp_path}/mine.ckpt", cwd=tmp_path)
    assert stated["scores"]["perplexity"] == result(trained)["perplexity"]
    assert not (trained / "evaluations").exists()


def test_a_checkpoint_of_another_run_is_an_error(copied: Path, tmp_path: Path) -> None:
    stored = torch.load(copied / "checkpoints/last.ckpt", weights_only=True)
    stored["reslab"]["config"]["optimizer"]["lr"] = 0.5
    torch.save(stored, tmp_path / "other.ckpt")
    shutil.copy(tmp_path / "other.ckpt", copied / "checkpoints/best.ckpt")
    for overrides in (
        [f"run={copied}", f"checkpoint={tmp_path}/other.ckpt"],
        [f"run={copied}", "checkpoint=best"],
        [f"checkpoint={copied}/checkpoints/best.ckpt"],
    ):
        with pytest.raises(UserError, match=r"belongs to another run .* optimizer.lr is 0.5 there and 0.001 here"):
            evaluate(*overrides, cwd=tmp_path)
    assert not (copied / "evaluations").exists()


def test_a_checkpoint_from_before_a_resume_may_differ_in_values_but_not_in_the_model(
    copied: Path, tmp_path: Path
) -> None:
    stated = {**result(copied), "resumed_at": [12]}
    (copied / "result.json").write_text(json.dumps(stated))
    stored = torch.load(copied / "checkpoints/last.ckpt", weights_only=True)
    stored["reslab"]["config"]["optimizer"]["lr"] = 0.5
    (copied / "checkpoints/best.ckpt").unlink()
    torch.save(stored, copied / "checkpoints/best.ckpt")
    assert evaluate(f"run={copied}", "checkpoint=best", cwd=tmp_path)["step"] == 12
    stored["reslab"]["config"]["seed"] = 9
    torch.save(stored, copied / "checkpoints/best.ckpt")
    with pytest.raises(UserError, match="seed is 9 there and 1 here"):
        evaluate(f"run={copied}", "checkpoint=best", cwd=tmp_path)


def test_a_missing_or_older_checkpoint_is_an_error_and_is_not_replaced(copied: Path, tmp_path: Path) -> None:
    last = copied / "checkpoints/last.ckpt"
    stored = torch.load(last, weights_only=True)
    stored["reslab"]["step"] = 8
    last.unlink()
    with pytest.raises(UserError, match=r"last\.ckpt: no checkpoint there"):
        evaluate(f"run={copied}", cwd=tmp_path)
    torch.save(stored, last)
    with pytest.raises(UserError, match="is of step 8, but"):
        evaluate(f"run={copied}", cwd=tmp_path)
    torch.save({"state_dict": {}}, last)
    with pytest.raises(UserError, match="is not a checkpoint of this project"):
        evaluate(f"run={copied}", cwd=tmp_path)
    assert not (copied / "evaluations").exists()


def test_a_hugging_face_folder_has_the_scores_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=32, layer_norm_epsilon=1e-4)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "hub")
    stated = evaluate(f"hf={tmp_path}/hub", cwd=tmp_path)
    assert stated["step"] is None
    assert stated["checkpoint"]["sha256"] == sha256_file(tmp_path / "hub/model.safetensors")
    stream = lambada_tokens()[: 128 + 1]
    total = 0.0
    for at in range(0, 128, 32):
        window = torch.tensor(stream[at : at + 33])
        with torch.no_grad():
            logp = model(window[None, :-1]).logits[0].double().log_softmax(-1)
        total -= sum(logp[t, window[t + 1]].item() for t in range(32))
    assert stated["scores"]["perplexity"]["lambada"]["loss"] == pytest.approx(total / 128, rel=1e-5)


def lambada_tokens() -> list[int]:
    import lzma

    from src.datamodules.tokenizer import gpt2_encoding
    from src.evaluation.sources import EMBEDDED

    with lzma.open(EMBEDDED / "lambada_openai_test_ws.jsonl.xz", "rt") as file:
        text = "\n\n".join(json.loads(line)["text"] for line in file)
    tokens: list[int] = gpt2_encoding().encode_ordinary(text[:20_000])
    return tokens


def test_exactly_one_source_of_weights_must_be_given(tmp_path: Path) -> None:
    for overrides in ([], ["hf=a", "run=b"], ["checkpoint=last"]):
        with pytest.raises(UserError, match="give one of run=<folder>"):
            evaluate(*overrides, cwd=tmp_path)
    with pytest.raises(UserError, match="run=nowhere is not a run folder"):
        evaluate("run=nowhere", cwd=tmp_path)


@pytest.mark.stress  # tests/evaluation has two ranks that share windows and requests
def test_two_ranks_share_the_work_and_give_the_scores_of_one(copied: Path, tmp_path: Path) -> None:
    stored = torch.load(copied / "checkpoints/last.ckpt", weights_only=True)
    stored["reslab"]["step"] = 6
    torch.save(stored, copied / "checkpoints/middle.ckpt")
    suite = [
        "evaluation.lm_eval.tasks=[piqa,winogrande]",
        "evaluation.lm_eval.limit=5",
        "evaluation.batch_size=2",
    ]
    keys = ["task=evaluate", "trainer=cpu", "trainer.threads=1", *LAMBADA[:-1], *suite, "hydra.run.dir=e"]
    done = run(*keys, f"run={copied}", "checkpoint=all", "trainer.devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shared = json.loads((tmp_path / "e/evaluation.json").read_text())
    assert [record["step"] for record in shared] == [6, 8, 12]
    assert [record["world_size"] for record in shared] == [2, 2, 2]
    for record in shared:
        alone = evaluate(f"checkpoint={record['checkpoint']['file']}", *suite, cwd=tmp_path)
        assert alone["world_size"] == 1
        for part, key in (("perplexity", "loss"), ("lm_eval", "score")):
            for name, entry in alone["scores"][part].items():
                assert record["scores"][part][name][key] == pytest.approx(entry[key], rel=1e-6)


def test_a_sharded_checkpoint_is_found_by_its_step(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints/step00000040.ckpt"
    path.mkdir(parents=True)
    assert _list_checkpoints(tmp_path, 40) == [path]
