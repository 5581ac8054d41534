"""Record of one forward: the embedding, and the input and output of every site.

`GPT` calls a recorder at each stage of its loop. `NullRecorder` discards everything; `TraceRecorder` keeps it. A
recorder may also replace the output of a sublayer.
"""

from typing import NamedTuple

from torch import Tensor

from src.residual.base import QKV, Site


class Injection(NamedTuple):
    """Embedding output that entered the trunk before a site."""

    before: int  # position of the site among the visited ones
    in_stream: bool  # False: only this site received it, with its input and its output
    e_BTD: Tensor


class Trace(NamedTuple):
    """Tensors of one forward: the embedding, each visited site's input and output, the strategy's end."""

    x0_BTD: Tensor
    injections: tuple[Injection, ...]
    read: tuple[Tensor | QKV, ...]
    y_BTD: tuple[Tensor, ...]
    end_BTD: Tensor


class NullRecorder:
    """Recorder that discards everything."""

    def record_start(self, x0_BTD: Tensor, state: object) -> None:
        """Record the output of the embedding and the strategy's state for it."""

    def record_injection(self, e_BTD: Tensor, *, in_stream: bool) -> None:
        """Record an injection before the next site."""

    def replace_output(self, site: Site, y_BTD: Tensor) -> Tensor:
        """Return what replaces the output of the sublayer that `site` visits, before anything is added to it."""
        return y_BTD

    def record_site(self, site: Site, x: Tensor | QKV, y_BTD: Tensor, state: object) -> None:
        """Record the input and the output of a site, and the strategy's state after it."""


class TraceRecorder(NullRecorder):
    """Recorder that keeps every tensor but the states."""

    x0_BTD: Tensor

    def __init__(self) -> None:
        self._injections: list[Injection] = []
        self._read: list[Tensor | QKV] = []
        self._y_BTD: list[Tensor] = []

    def record_start(self, x0_BTD: Tensor, state: object) -> None:
        self.x0_BTD = x0_BTD

    def record_injection(self, e_BTD: Tensor, *, in_stream: bool) -> None:
        self._injections.append(Injection(len(self._read), in_stream, e_BTD))

    def record_site(self, site: Site, x: Tensor | QKV, y_BTD: Tensor, state: object) -> None:
        self._read.append(x)
        self._y_BTD.append(y_BTD)

    def build_trace(self, end_BTD: Tensor) -> Trace:
        """Return the trace of a forward that ended with `end_BTD`."""
        return Trace(self.x0_BTD, tuple(self._injections), tuple(self._read), tuple(self._y_BTD), end_BTD)
