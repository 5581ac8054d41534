"""task=export: folders that load by themselves, with the run's record.

Covers `model_card.py` too.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from src.datamodules.prepare.prepare import PrepareKeys, prepare
from src.datamodules.prepare.tokenize_pool import encode
from src.datamodules.shards.local import open_local
from src.datamodules.tokenization.byte_level import ByteLevelTokenizer
from src.datamodules.tokenization.train import train_bpe
from src.errors import UserError
from src.files import sha256_file
from src.launch.job import Job
from src.models.formats.pretrained import from_pretrained, read_pretrained
from src.models.gpt import GPT
from src.settings.read import read_settings
from src.tasks import evaluate, export
from src.training.run import build_gpt
from tests.runs import ROOT, SMALL, make_shards, result, run

SUITE = [
    "evaluation=limited",
    "~evaluation.perplexity.wikitext2",
    "evaluation.perplexity.lambada.limit_tokens=128",
    "evaluation.lm_eval.tasks=[]",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run that ends in the middle of its strategy's warm-up."""
    cwd = tmp_path_factory.mktemp("trained")
    keys = [a for a in SMALL if not a.startswith(("evaluation=", "model.vocab_size="))]
    done = run(
        *keys,
        *SUITE,
        "residual=prores",
        "residual.warmup_fraction=1.0",
        f"data.path={make_shards(cwd / 'shards')}",
        "hydra.run.dir=r",
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return cwd / "r"


def do(task: str, *overrides: str, cwd: Path) -> Path:
    """Run a task in this process; return its folder."""
    folder = Path(tempfile.mkdtemp(dir=cwd))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        keys = [f"task={task}", "trainer=cpu", "trainer.threads=1", *SUITE, *overrides]
        config = compose("config", keys)
    {"export": export, "evaluate": evaluate}[task].run(Job(folder, config, resumes=False))
    return folder


def ids() -> torch.Tensor:
    return torch.randint(500, (2, 32), generator=torch.Generator().manual_seed(0))


def of_checkpoint(path: Path, *, step: int, max_steps: int) -> GPT:
    """Build the model of a checkpoint without the code under test."""
    from omegaconf import OmegaConf

    stored = torch.load(path, weights_only=True)
    gpt = build_gpt(read_settings(OmegaConf.create(stored["reslab"]["config"])))
    gpt.load_state_dict({k.removeprefix("gpt."): v for k, v in stored["state_dict"].items()})
    gpt.residual.on_step(step, max_steps)
    return gpt.eval()


def test_an_exported_strategy_loads_with_its_schedule(trained: Path, tmp_path: Path) -> None:
    do("export", f"run={trained}", f"output={tmp_path}/hub", cwd=tmp_path)
    names = ["README.md", "config.json", "generation_config.json", "model.safetensors"]
    names += ["tokenizer.json", "tokenizer_config.json"]
    assert sorted(p.name for p in (tmp_path / "hub").iterdir() if p.suffix != ".py") == names
    assert (tmp_path / "hub/modeling_reslab.py").is_file()
    last = trained / "checkpoints/last.ckpt"
    expected = of_checkpoint(last, step=11, max_steps=12)
    found = from_pretrained(tmp_path / "hub")
    assert torch.equal(found(ids()), expected(ids()))
    assert not torch.equal(found(ids()), of_checkpoint(last, step=0, max_steps=12)(ids()))
    recipe = read_pretrained(tmp_path / "hub")[0]
    assert (recipe.step, recipe.max_steps) == (12, 12)
    assert recipe.run["config_hash"] == result(trained)["config_hash"]
    assert recipe.run["data_hash"] == result(trained)["data"]["hash"]


def test_an_exported_folder_has_the_scores_of_its_run(trained: Path, tmp_path: Path) -> None:
    do("export", f"run={trained}", f"output={tmp_path}/hub", cwd=tmp_path)
    stated = json.loads((do("evaluate", f"hf={tmp_path}/hub", cwd=tmp_path) / "evaluation.json").read_text())
    assert stated["scores"]["perplexity"] == result(trained)["perplexity"]
    assert stated["step"] == 12
    assert stated["config_hash"] == result(trained)["config_hash"]
    assert stated["checkpoint"]["sha256"] == sha256_file(tmp_path / "hub/model.safetensors")


def test_the_card_holds_the_runs_record_and_no_folder_of_this_machine(trained: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(trained, tmp_path / "copied"))
    do("evaluate", f"run={copied}", "evaluation.perplexity.lambada.limit_tokens=64", cwd=tmp_path)
    do("export", f"run={copied}", f"output={tmp_path}/hub", cwd=tmp_path)
    card = (tmp_path / "hub/README.md").read_text()
    stated = result(trained)
    assert card.startswith("---\nlibrary_name: transformers\n")
    for words in (
        f"{stated['val_loss']:.4f} nats",
        f"| lambada perplexity | {stated['perplexity']['lambada']['ppl']:.2f} | first 128 of",
        "| first 64 of",
        "after 12 of 12 optimizer steps",
        stated["config_hash"],
        stated["data"]["hash"],
        sha256_file(copied / "checkpoints/last.ckpt"),
        "_target_: src.residual.prores.ProRes",
        "warmup_fraction: 1.0",
        'AutoModelForCausalLM.from_pretrained("<this folder>", trust_remote_code=True)',
        f"tokens seen: {stated['tokens']:,}",
    ):
        assert words in card
    assert str(tmp_path) not in card
    assert str(trained.parent) not in card


def test_the_tokenizer_loads_in_transformers(trained: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="a development dependency")
    do("export", f"run={trained}", f"output={tmp_path}/hub", cwd=tmp_path)
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "hub")
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.model_max_length == 32


@pytest.mark.stress
def test_lm_evals_own_command_scores_an_export(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="lm-eval's Hugging Face model needs it (pip install accelerate)")
    do("export", f"run={trained}", f"output={tmp_path}/hub", cwd=tmp_path)
    rows = [{"question": f"{a} + 1 =", "answer": f" {a + 1}", "choices": [" 1", f" {a + 1}"]} for a in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    kinds = {
        "chosen": "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\nmetric_list: [{metric: acc}]",
        "written": "output_type: generate_until\ngeneration_kwargs: {until: ['\\n'], max_gen_toks: 3}\n"
        "metric_list: [{metric: exact_match}]",
    }
    for name, kind in kinds.items():
        (tmp_path / f"tasks/{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\n"
            f"test_split: test\ndoc_to_text: '{{{{question}}}}'\ndoc_to_target: '{{{{answer}}}}'\n{kind}\n"
        )
    command = ["-m", "lm_eval", "--model", "hf", "--tasks", "chosen,written", "--device", "cpu", "--batch_size", "2"]
    arguments = [f"pretrained={tmp_path}/hub,trust_remote_code=True", "--include_path", f"{tmp_path}/tasks"]
    environment = {**os.environ, "HF_HOME": f"{tmp_path}/home", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command, "--model_args", *arguments, "--output_path", "scores.json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (scores,) = tmp_path.glob("scores*.json")
    found = json.loads(scores.read_text())["results"]
    assert 0 <= found["chosen"]["acc,none"] <= 1
    assert found["written"]["exact_match,none"] == 0  # numbers, of a model of a few steps


def test_another_checkpoint_of_the_run_is_exported_at_its_own_step(trained: Path, tmp_path: Path) -> None:
    stored = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    stored["reslab"]["step"] = 4
    torch.save(stored, tmp_path / "mine.ckpt")
    do("export", f"checkpoint={tmp_path}/mine.ckpt", f"output={tmp_path}/hub", cwd=tmp_path)
    expected = of_checkpoint(tmp_path / "mine.ckpt", step=3, max_steps=12)
    assert torch.equal(from_pretrained(tmp_path / "hub")(ids()), expected(ids()))
    assert "These weights have no scores." in (tmp_path / "hub/README.md").read_text()


def test_an_invalid_export_is_an_error_of_one_sentence_and_leaves_no_folder(trained: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(trained, tmp_path / "copied"))
    stored = torch.load(copied / "checkpoints/last.ckpt", weights_only=True)
    stored["reslab"]["step"] = 4
    torch.save(stored, copied / "checkpoints/other.ckpt")
    cases: list[tuple[list[str], str]] = [
        ([f"run={copied}"], "output is missing; give output=<folder>"),
        (["output=x"], "give one of run=<folder>"),
        ([f"run={tmp_path}", f"output={tmp_path}/hub"], "is not a run folder"),
        ([f"run={copied}", f"output={copied}"], "exists already"),
        ([f"run={copied}", "checkpoint=all", f"output={tmp_path}/hub"], "export takes one checkpoint"),
        ([f"checkpoint={tmp_path}/no.ckpt", f"output={tmp_path}/hub"], "no checkpoint there"),
    ]
    for overrides, words in cases:
        with pytest.raises(UserError, match=words):
            do("export", *overrides, cwd=tmp_path)
    assert not (tmp_path / "hub").exists()
    assert not list(tmp_path.glob(".*.part"))


def test_all_checkpoints_of_a_run_are_scored_once_each_and_make_a_curve(trained: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(trained, tmp_path / "copied"))
    stored: dict[str, Any] = torch.load(copied / "checkpoints/last.ckpt", weights_only=True)
    for step in (3, 5):  # beside those that the run keeps, of steps 8 and 12
        stored["reslab"]["step"] = step
        torch.save(stored, copied / f"checkpoints/z{12 - step}.ckpt")  # names that sort the other way
    folder = do("evaluate", f"run={copied}", "checkpoint=all", cwd=tmp_path)
    records = json.loads((folder / "evaluation.json").read_text())
    assert [record["step"] for record in records] == [3, 5, 8, 12]  # best.ckpt is last.ckpt
    assert records[3]["checkpoint"]["file"].endswith("last.ckpt")
    assert len(list((copied / "evaluations").iterdir())) == 4
    header, *rows = (folder / "curve.csv").read_text().splitlines()
    assert header == "name,step,perplexity/lambada,file"
    ppl = [float(row.split(",")[2]) for row in rows]
    assert ppl == [record["scores"]["perplexity"]["lambada"]["ppl"] for record in records]
    assert len(set(ppl)) == 4
    files = ",".join(str(copied / f"checkpoints/{name}.ckpt") for name in ("z9", "z7"))
    again = do("evaluate", f"checkpoint=[{files}]", cwd=tmp_path)
    assert json.loads((again / "evaluation.json").read_text()) == records[:2]
    with pytest.raises(UserError, match=r"checkpoint=\[\] names none"):
        do("evaluate", f"run={copied}", "checkpoint=[]", cwd=tmp_path)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run on shards of a tokenizer of 512 ids."""
    cwd = tmp_path_factory.mktemp("small")
    texts = [f"Document {i} says: " + f"the {i} cats walk to naïve Zürich. " * 30 for i in range(60)]
    (cwd / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (cwd / "small.json").write_text(train_bpe(iter(texts), 300))
    with pytest.MonkeyPatch.context() as patch:
        name = "src.datamodules.prepare.prepare.encode_chunks"
        patch.setattr(name, lambda chunks, n, path: ((c, encode(c, path)) for c in chunks))
        keys = PrepareKeys(
            str(cwd / "texts.jsonl"), str(cwd / "shards"), 1, 10**6, 2000, tokenizer=str(cwd / "small.json")
        )
        prepare(keys)
    keys = [key for key in SMALL if not key.startswith(("evaluation=", "model.vocab_size="))]
    done = run(*keys, *SUITE, "model.vocab_size=384", "data.path=shards", "hydra.run.dir=r", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "r"


def test_the_tokenizer_of_the_data_is_in_record_checkpoint_and_export(small: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    text = (small.parent / "small.json").read_text()
    ours = ByteLevelTokenizer("small", text)
    stated, record = ours.statement(), result(small)
    assert record["data"]["tokenizer"] == stated
    stored = torch.load(small / "checkpoints" / "last.ckpt", weights_only=True)["reslab"]["tokenizer"]
    assert stored == {**stated, "content": text}
    lambada = record["perplexity"]["lambada"]
    assert lambada["tokenizer"] == ours.sha256
    do("export", f"run={small}", f"output={tmp_path / 'out'}", cwd=tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("cats walk<|endoftext|>")["input_ids"] == [*ours.encode("cats walk"), ours.end_of_text]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == ours.end_of_text
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["suppress_tokens"] == list(range(300, 384))  # the padding of the vocabulary
    assert f"small (300 ids), sha256 {ours.sha256}" in (tmp_path / "out" / "README.md").read_text()
    alone = tmp_path / "alone.ckpt"
    shutil.copyfile(small / "checkpoints" / "last.ckpt", alone)
    for where in (f"hf={tmp_path / 'out'}", f"checkpoint={alone}"):
        scored = json.loads((do("evaluate", where, cwd=tmp_path) / "evaluation.json").read_text())
        assert scored["scores"]["perplexity"]["lambada"] == lambada


def test_bits_per_byte_are_the_loss_over_the_bytes_that_its_tokens_stand_for(small: Path) -> None:
    ours = ByteLevelTokenizer("small", (small.parent / "small.json").read_text())
    record = result(small)
    val = open_local(str(small.parent / "shards")).val[0].load()
    windows = record["data"]["val_tokens"]
    n_bytes = len(ours.decode_bytes([t for t in val.tokens[1 : windows + 1].tolist() if t != ours.end_of_text]))
    assert record["val_bpb"] == pytest.approx(record["val_loss"] / math.log(2) * windows / n_bytes, rel=1e-6)


def test_a_vocabulary_without_the_tokenizers_ids_is_rejected(small: Path, tmp_path: Path) -> None:
    shards = str(small.parent / "shards")
    done = run(*SMALL, "model.vocab_size=256", f"data.path={shards}", "hydra.run.dir=x", cwd=tmp_path)
    assert done.returncode == 2
    assert "has the 300 ids of tokenizer small, model.vocab_size is 256; give model.vocab_size=384" in done.stderr
