"""Models of the hub, from a local cache and without a network; the revision is stated."""

from pathlib import Path

import pytest
import torch

from src.models.formats.hub import identify, locate
from src.models.formats.pretrained import from_pretrained, load_weights, read_recipe
from tests.support import export_gpt2, jitter, tiny_gpt, tokens

REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of huggingface_hub, whose layout its documentation states, and no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def publish(cache: Path, name: str) -> torch.Tensor:
    """Put a model into the cache and return its logits."""
    gpt = jitter(tiny_gpt())
    stored = cache / f"models--{name.replace('/', '--')}"
    export_gpt2(gpt, stored / "snapshots" / REVISION)
    (stored / "refs").mkdir()
    (stored / "refs/main").write_text(REVISION)
    logits: torch.Tensor = gpt(tokens())
    return logits


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_a_model_of_the_hub_is_read_from_the_cache(name: str, cache: Path) -> None:
    logits = publish(cache, name)
    for address in (name, f"{name}@main", f"{name}@{REVISION}"):
        assert torch.equal(from_pretrained(address)(tokens()), logits)
        assert read_recipe(Path(address)).model["n_embd"] == 16
        gpt = tiny_gpt(seed=5)
        load_weights(gpt, Path(address))
        assert torch.equal(gpt(tokens()), logits)
        found = identify(Path(address))
        assert (found["source"], found["revision"], len(found["sha256"])) == (address, REVISION, 64)


def test_a_local_folder_comes_first(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(cache, "gpt2")
    monkeypatch.chdir(tmp_path)
    export_gpt2(tiny_gpt(), tmp_path / "gpt2")
    assert locate(Path("gpt2")) == Path("gpt2")
    assert identify(Path("gpt2"))["revision"] is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "openai-community/gpt3",
            r"openai-community/gpt3 was found neither locally nor on the hub \(LocalEntryNotFoundError: .*check",
        ),
        ("runs/a/b", r"runs/a/b does not exist; give a folder, nanoGPT's ckpt\.pt, or a model of the hub"),
        ("/no/where", "/no/where does not exist"),
    ],
)
def test_a_model_that_is_nowhere_is_one_sentence(name: str, words: str, cache: Path) -> None:
    with pytest.raises(ValueError, match=rf"^init_from={words}") as caught:
        load_weights(tiny_gpt(), Path(name))
    assert "\n" not in str(caught.value)
