"""Candidates: how a configuration's text is read, and what one process requires of all of them."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from src.bench.candidates import Candidate, read_configuration, require_one_process, require_unique_names
from src.errors import UserError
from src.launch.job import Job


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attnres", "must be overrides such as"),
        ("a: residual=attnres norm", "must be overrides such as"),
        ("trusted_targets=[mine]", "cannot set trusted_targets=[mine]"),
        ("norm=rmsnorm +bench.rounds=3", "cannot set +bench.rounds=3"),
    ],
)
def test_a_text_that_is_no_configuration_is_an_error(text: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        read_configuration(Job(Path(), OmegaConf.create(), resumes=False), text)


def candidate(name: str, n_threads: int) -> Candidate:
    settings = SimpleNamespace(trainer=SimpleNamespace(accelerator="cpu", threads=n_threads))
    return Candidate(name, (), settings, None)  # type: ignore[arg-type]


def test_all_candidates_have_the_same_number_of_threads() -> None:
    with pytest.raises(UserError, match=r"'a' has trainer\.threads=1 and 'b' has 2"):
        require_one_process([candidate("a", 1), candidate("b", 2)])
    require_one_process([candidate("a", 1), candidate("b", 1)])


def test_a_name_occurs_once() -> None:
    with pytest.raises(UserError, match="'a' occurs twice"):
        require_unique_names(["b", "a", "a"])
