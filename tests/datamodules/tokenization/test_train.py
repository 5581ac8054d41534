"""Training of a tokenizer: a function of the documents, checked bounds, a folder that appears as a whole."""

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from src.datamodules.tokenization.byte_level import ByteLevelTokenizer
from src.datamodules.tokenization.train import TokenizerKeys, train_bpe, train_tokenizer
from src.errors import UserError
from src.files import CONF
from src.launch.job import Job
from src.tasks import tokenizer as task

RANDOM = random.Random(0)
WORDS = ["".join(RANDOM.choices("abcdefghijklmnop", k=7)) for _ in range(400)]


def write_texts(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [" ".join(WORDS[(i * j) % len(WORDS)] for j in range(1, 200)) for i in range(1, 60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (folder / "more.txt").write_text("Three naïve cats <|endoftext|> walked. " * 50)
    return folder


def test_merges_are_those_of_byte_pair_encoding() -> None:
    """The right value: the most frequent pair, counted by hand, is merged first; `min_frequency` is 2."""
    texts = ["low low low lower lowest", "newer newer wider"]
    model = json.loads(train_bpe(iter(texts), 260))["model"]
    words = Counter(w for text in texts for w in (text.split(" ")[0], *(f"Ġ{x}" for x in text.split(" ")[1:])))
    pairs = Counter(pair for word, n in words.items() for pair in pairwise(word) for _ in range(n))
    assert model["merges"][0] == list(pairs.most_common(1)[0][0])
    assert model["vocab"]["<|endoftext|>"] == 0
    assert sorted(model["vocab"].values()) == list(range(260))


def test_a_tokenizer_follows_from_the_documents_alone(tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts")
    first = train_tokenizer(TokenizerKeys(str(source), "text", str(tmp_path / "a"), 1024, None))
    again = train_tokenizer(TokenizerKeys(str(source), "text", str(tmp_path / "deeper" / "b"), 1024, None))
    assert first.sha256 == again.sha256
    assert (first.n_vocab, first.name) == (1024, "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    stated = json.loads((tmp_path / "a" / "training.json").read_text())
    assert stated["sha256"] == first.sha256
    assert stated["documents"] == 60
    less = train_tokenizer(TokenizerKeys(str(source), "text", str(tmp_path / "c"), 1024, 30_000))
    assert json.loads((tmp_path / "c" / "training.json").read_text())["bytes"] == 30_000
    assert less.sha256 != first.sha256


def test_transformers_loads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = train_tokenizer(
        TokenizerKeys(str(write_texts(tmp_path / "texts")), "text", str(tmp_path / "tok"), 1024, None)
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "tok")
    text = "Three naïve cats, walked. 27"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert (len(theirs), theirs.eos_token_id) == (1024, ours.end_of_text)
    assert theirs.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["tokenizer.vocab_size=500"], "tokenizer.vocab_size must be int >= 1024 and <= 32768, got 500"),
        (
            ["tokenizer.vocab_size=32768"],
            "which make .* ids, not tokenizer.vocab_size=32768; lower it or give more text",
        ),
        (["tokenizer.source=nowhere"], "tokenizer.source=nowhere does not exist"),
        (["tokenizer.output=texts"], "tokenizer.output=texts exists already; name a folder that does not"),
        (["tokenizer.output=???"], "tokenizer.output is missing"),
        (["+tokenizer.size=3"], "tokenizer.size is not a key"),
    ],
)
def test_bad_input_is_one_sentence(
    overrides: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_texts(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    keys = ["task=tokenizer", "tokenizer.source=texts", "tokenizer.output=tok", "tokenizer.vocab_size=1024", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", keys)
    with pytest.raises(UserError, match=words):
        task.run(Job(tmp_path, config, resumes=False))
    assert not (tmp_path / "tok").exists()


def test_the_task_reports_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    keys = ["task=tokenizer", "tokenizer.source=texts", "tokenizer.output=tok", "tokenizer.vocab_size=1024"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        end = task.run(Job(tmp_path, compose("config", keys), resumes=False))
    read = ByteLevelTokenizer("tok", (tmp_path / "tok" / "tokenizer.json").read_text())
    assert end.line == f"1,024 ids in tok, sha256 {read.sha256[:12]}"


def test_a_folder_inside_the_source_is_an_error(tmp_path: Path) -> None:
    """A preparation of that source would take the tokenizer's files for documents."""
    source = write_texts(tmp_path / "texts")
    with pytest.raises(
        UserError, match=r"tokenizer\.output=.* lies inside tokenizer\.source=.*; give a folder outside"
    ):
        train_tokenizer(TokenizerKeys(str(source), "text", str(source / "bpe"), 1024, None))
