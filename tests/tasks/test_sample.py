"""task=sample: continuations on standard output and in samples.jsonl."""

import json
from pathlib import Path
from typing import Any

import pytest

from src.errors import UserError
from src.launch.job import COMPLETED, Job
from src.tasks.sample import run
from tests.settings.test_read import composed
from tests.support import export_gpt2, jitter, tiny_gpt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hub"
    export_gpt2(jitter(tiny_gpt(vocab_size=50304)), folder)
    return folder


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.tasks.sample.prepare_process", lambda trainer: None)


def sampled(folder: Path, model: Path, *overrides: str) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    own = ("task=sample", "trainer=cpu", f"hf={model}", "sample.tokens=5", *overrides)
    assert run(Job(folder, composed(*own), resumes=False)).code == COMPLETED
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_a_prompt_is_continued_as_it_grows(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = sampled(tmp_path, model, "sample.prompt='Once upon'")
    assert capsys.readouterr().out == f"Once upon{record['text']}\n"
    assert (record["prompt"], record["tokens"], record["cache"]) == ("Once upon", 5, True)
    assert record["checkpoint"]["file"] == str(model)
    (again,) = sampled(tmp_path / "again", model, "sample.prompt='Once upon'", "sample.cache=false")
    assert again["text"] == record["text"]


def test_prompts_of_a_file_have_several_continuations(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.txt").write_text('\ufeffThe king\n\n{"prompt": "two\\nlines"}\n', encoding="utf-8")
    records = sampled(tmp_path / "r", model, f"sample.file={tmp_path / 'p.txt'}", "sample.count=2", "sample.top_p=0.9")
    assert [(r["prompt"], r["number"]) for r in records] == [
        *(("The king", 0), ("The king", 1)),
        *(("two\nlines", 0), ("two\nlines", 1)),
    ]
    assert capsys.readouterr().out.count("--- 2 of 2") == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), "give one of sample.prompt='<text>' and sample.file=<file with a prompt a line>"),
        (("sample.prompt=a", "sample.file=b"), "give one of sample.prompt"),
        (("sample.file=nowhere",), "sample.file=nowhere cannot be read: No such file or directory"),
        (("sample.prompt=a", "sample.top_p=2"), r"sample\.top_p must be .*float > 0 and <= 1.*, got 2"),
        (("sample.prompt=a", "sample.top_q=2"), r"sample\.top_q is not a key, did you mean sample\.top_p\?"),
        (("sample.prompt=a", "hf=/no/where"), "hf=/no/where does not exist"),
    ],
)
def test_errors_are_one_sentence(overrides: tuple[str, ...], words: str, model: Path, tmp_path: Path) -> None:
    overrides = tuple(f"+{text}" if "top_q" in text else text for text in overrides)
    with pytest.raises(UserError, match=words):
        sampled(tmp_path, model, *overrides)
