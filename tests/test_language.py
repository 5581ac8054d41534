"""Code, configuration and documents use the field's terms, and docstrings begin with one sentence.

The words below come from an older vocabulary of this project. A word with a legitimate technical use is not listed.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: Regular expressions, matched as whole words in any case, and what to write instead.
BANNED = {
    r"reckon(s|ed|ing|ings)?": "compute, accumulate",
    r"go(es)? on|went on|going on": "continue, resume",
    r"(is|are|was|were|been|be) told": "receives, gets, is configured",
    r"serv(e|es|ed) (no|any|this|that|it|them|neither|only)|(does|do|did) not serve": "dispatches to, falls back, runs",
    r"the plain (form|one|ones|way)": "reference implementation",
    r"(?<!\*\.)refus(e|es|ed|ing|al|als)": "reject, raise an error",
    r"makes? (the )?streams again|streams (are|is) made again|made anew|anew|afresh": "recompute, rebuild",
    r"whoever|whomever|whosoever": "name the subject",
    r"altogether": "in total, fully",
    r"beforehand": "before <event>",
    r"in its (place|stead)": "instead",
    r"leaves with (\d|a code|an exit)": "exits with code <n>",
    r"(a|the|one|by|no|another's) mistakes?": "error",
    r"contestants?": "candidate",
    r"in turns|by turns": "alternating",
    r"surroundings?": "environment, overhead",
    r"artefacts?": "file, artifact",
    r"wanting|is wanted|are wanted": "missing, required",
    r"as (it|they) (comes?|please)": "unmodified",
    r"makes? nothing of": "ignores",
    r"is given (by|to) (whoever|nobody|none)|lent|betrays?|dwells?": "use the technical term",
    r"(?<!there )is no (option|folder|file|mapping|key|class|function|strategy|string|task of)": "is not a ...",
    r"none the less|nonetheless|no less than|not the less": "at least, still",
    r"heretofore|hereafter|thereof|therein|thereby|whereby|whereupon|wherein|wherefore|whence|lest": "so, which, in case",
    r"ought|shall|upon|amongst|whilst|till|nought|thither|forthwith|nigh": "must, on, among, while, until, zero",
    r"the machine's affair|costs speed only|serves": "runs slower; runs",
    r"replay(s|ed)?": "recompute",
    r"pulls? (the|its|their|all) (gradients?|sources?)": "compute the gradient of a source",
    r"one stream, which is worse": "n_stream must be >= 2",
    r"at hand|to hand": "available",
    r"for good|in vain|of old|by and by|ere": "permanently, without effect",
    r"(good|great|little|much) (deal|ado)": "much",
    r"desks?|shelf|shelves": "prefetcher, cache",
}
PATTERN = re.compile("|".join(f"(?P<w{i}>\\b(?:{word})\\b)" for i, word in enumerate(BANNED)), re.IGNORECASE)
FIRST_WORDS = {
    *("A", "An", "As", "From", "How", "In", "Of", "The", "What", "Where", "Whether", "Which", "Who", "Whose"),
}


def list_files() -> list[str]:
    """Return the paths of the code, configuration and documents that users and contributors read."""
    found = [p for pattern in ("*.py", "*.cpp", "*.h") for p in (ROOT / "src").rglob(pattern)]
    found += (ROOT / "conf").rglob("*.yaml")
    found += [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "docs").glob("*"), ROOT / "run.py"]
    found += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "setup.sh"]
    return sorted(p.relative_to(ROOT).as_posix() for p in found if p.suffix in _EXTRACT)


def prose_of_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield the comments, docstrings and messages of Python code: strings with a space, f-strings in parts."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            for number, line in enumerate(node.value.splitlines()):
                yield node.lineno + number, line


def lines_of_text(source: str) -> Iterator[tuple[int, str]]:
    """Yield every line."""
    yield from enumerate(source.splitlines(), 1)


def comments_of_cpp(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line comments of C++ code; it has no others."""
    for number, line in enumerate(source.splitlines(), 1):
        if "//" in line:
            yield number, line.partition("//")[2]


_EXTRACT = {
    **{".py": prose_of_python, ".cpp": comments_of_cpp, ".h": comments_of_cpp},
    **{".yaml": lines_of_text, ".md": lines_of_text, ".sh": lines_of_text},
}


def find_banned(path: str, source: str) -> list[str]:
    """Return one line for each banned word: where it is and what to write instead."""
    words = list(BANNED)
    found = []
    for number, line in _EXTRACT[Path(path).suffix](source):
        for match in PATTERN.finditer(line):
            assert match.lastgroup is not None
            right = BANNED[words[int(match.lastgroup.removeprefix("w"))]]
            found.append(f"{path}:{number}: write {right!r} instead of {match[0]!r}: {line.strip()}")
    return found


def find_bad_first_lines(path: str, source: str) -> list[str]:
    """Return the docstrings whose first line is not one sentence in the required form."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = (ast.get_docstring(node) or "Empty.").splitlines()[0]
        if first.split()[0] in FIRST_WORDS or not first.endswith("."):
            found.append(f"{path}:{getattr(node, 'lineno', 1)}: {first}")
    return found


FILES = {path: (ROOT / path).read_text(encoding="utf-8") for path in list_files()}


def test_prose_uses_the_terms_of_the_field() -> None:
    assert [fault for path, text in FILES.items() for fault in find_banned(path, text)] == []


def test_first_line_of_a_docstring_is_a_sentence() -> None:
    python = {path: text for path, text in FILES.items() if path.endswith(".py")}
    assert [fault for path, text in python.items() for fault in find_bad_first_lines(path, text)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("src/a.py", "# what it was told"),
        ("src/a.py", '"""Return x; whoever calls it waits."""'),
        ("src/a.py", 'raise ValueError(f"{key} is refused")'),
        ("src/a.cpp", "int x; // reckons in float32"),
        ("conf/a.yaml", "a: 1 # the plain form"),
        ("docs/a.md", "The run goes on."),
    ],
)
def test_a_planted_word_is_found(path: str, source: str) -> None:
    assert len(find_banned(path, source)) == 1


def test_names_in_code_are_not_prose() -> None:
    assert find_banned("src/a.py", "replay = serves['refused']") == []


@pytest.mark.parametrize("first", ["Whether x is even.", "In which x is even.", "Return x", "A number."])
def test_a_planted_first_line_is_found(first: str) -> None:
    assert len(find_bad_first_lines("src/a.py", f'def f():\n    """{first}\n\n    More.\n    """')) == 1
