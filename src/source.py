"""Source of a method: where it is published, which code was read, and how the form of this project differs.

Every class of the axes `residual`, `norm`, `embedding` and `recurrence` has one as its attribute `source`. The fidelity
table of the documentation and `task=check` are made from it.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

#: Deviations that several methods share: the trunk is the same under every strategy.
QK_NORM = "The source's models norm queries and keys, which model.qk_norm does here and the default does not."
EMBEDDING_NORM = "x0 is the trunk's embedding, which the source's models divide by its root mean square."


@dataclass(frozen=True)
class Source:
    """Publication and code of a method.

    Args:
        paper: paper with section or equations, or another description where there is no paper.
        code: repository that was read, `owner/name`; empty if there is none.
        commit: commit of `code`, at least 7 hex digits.
        deviations: differences of the shipped configuration from the source, one sentence each, with the reason.
        changed_in: version of reslab since which the class computes what it does now; empty if it always did.

    Raises:
        ValueError: `code` and `commit` are not given together, or nothing is named.
    """

    paper: str = ""
    code: str = ""
    commit: str = ""
    deviations: tuple[str, ...] = ()
    changed_in: str = ""

    def __post_init__(self) -> None:
        if bool(self.code) != bool(self.commit) or not (self.paper or self.code):
            raise ValueError(f"a source needs a paper, or code with its commit, got {self}")

    def __str__(self) -> str:
        """Return paper and code in one line."""
        code = f"{self.code} @ {self.commit[:7]}" if self.code else ""
        return "; ".join(part for part in (self.paper, code) if part)


def find_sources(factory: object) -> Iterator[tuple[str, Source | None]]:
    """Yield the class name and the source (None: not stated) of what a factory builds, then of the parts it is given."""
    if isinstance(factory, functools.partial):
        yield factory.func.__name__, getattr(factory.func, "source", None)
        for value in factory.keywords.values():
            yield from find_sources(value)
    elif isinstance(factory, list | tuple | dict):
        for value in factory.values() if isinstance(factory, dict) else factory:
            yield from find_sources(value)
