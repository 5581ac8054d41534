"""Composition: branch strategies on the stream of one other strategy.

    u = read of the stream;   x = enter_n(.. enter_1(u));   y' = leave_n(.. leave_1(F(N(x))));   the stream writes y'

The stream is that of the part that is not a branch strategy (`families/branch.py`), or vanilla's. It taps queries, keys
and values first, then the branch strategies, in their order. An addition of the embedding that the stream declines
(`inject`) is added to u and to y', so that no branch strategy changes it.

Source: the published combinations are those of the parts' sources, such as ProRes on LNS and DeepNorm (arXiv
2603.05369) and LSS on mHC (arXiv 2606.03483).
At init: vanilla where all parts are; otherwise see `init_equivalent`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from src.residual.base import QKV, InitEquivalent, ParamGroup, ResidualStrategy, Site, StreamSpec
from src.residual.families.branch import BranchStrategy, Memory
from src.residual.vanilla import Vanilla
from src.source import Source

Stream = ResidualStrategy[Any]  # of any state


class ComposedState(NamedTuple):
    """State of the stream, memories of the branch strategies, and an addition to the next site only."""

    stream: Any
    memories: tuple[Memory, ...]
    rest_BTD: Tensor | None


class Composed(ResidualStrategy[ComposedState]):
    """Branch strategies on a stream; the parameters are those of the parts, `parts.<name>`.

    Args:
        parts: factories by name, in the order in which they apply.

    Raises:
        ValueError: two parts touch the same thing.
    """

    source = Source("the sources of its parts")

    def __init__(self, spec: StreamSpec, *, parts: dict[str, Any]) -> None:
        super().__init__()
        streams = [name for name, make in parts.items() if not _is_branch(make)]
        if len(streams) > 1:
            raise ValueError(_conflict(streams, "define the stream"))
        self.stream_name = streams[0] if streams else "vanilla"
        stream = parts[streams[0]](spec) if streams else Vanilla(spec)
        spec = replace(spec, sites=stream.visits(spec.sites), n_stream=stream.n_stream)
        built = {name: stream if name == self.stream_name else make(spec) for name, make in parts.items()}
        self.parts = nn.ModuleDict({**({} if streams else {"vanilla": stream}), **built})
        self._reject_conflicts(spec)
        every = (self.stream, *self.branches)
        self.may_skip = all(part.may_skip for part in every)  # type: ignore[misc]  # decided by the parts
        self.ends_anywhere = self.stream.ends_anywhere  # type: ignore[misc]  # decided by the parts
        self.taps_qkv = any(part.taps_qkv for part in every)  # type: ignore[misc]  # decided by the parts
        claims = {part.init_equivalent for part in every} - {"vanilla"}
        self.init_equivalent = _join_claims(claims)  # type: ignore[misc]  # decided by the parts

    def _reject_conflicts(self, spec: StreamSpec) -> None:
        """Reject parts that place the norm of the same sublayer, or replace the same quantity."""
        parts = cast(dict[str, Stream], dict(self.parts.items()))
        for site in (*spec.sites, None):
            owners = [name for name, part in parts.items() if part.owns_norm(site)]
            if len(owners) > 1:
                where = f"the input norm of {site.kind} {site.layer}" if site else "the final norm"
                raise ValueError(_conflict(owners, f"place {where}"))
        replaced: dict[str, str] = {}
        for name, part in parts.items():
            quantity = getattr(part, "replaces", "")
            if quantity in replaced:
                raise ValueError(_conflict([replaced[quantity], name], f"change {quantity}"))
            if quantity:
                replaced[quantity] = name

    @property
    def stream(self) -> Stream:
        """Return the part that defines the stream."""
        return cast(Stream, self.parts[self.stream_name])

    @property
    def branches(self) -> tuple[BranchStrategy, ...]:
        """Return the branch strategies, in the order in which they apply."""
        return tuple(cast(BranchStrategy, part) for name, part in self.parts.items() if name != self.stream_name)

    # ---- verbs

    def begin(self, x0_BTD: Tensor) -> ComposedState:
        h = x0_BTD
        for part in self.branches:
            h = part.start(h)
        stream = self.stream.begin(h) if h.dim() == x0_BTD.dim() else self.stream.begin_streams(h)
        return ComposedState(stream, ((),) * len(self.branches), None)

    def inject(self, state: ComposedState, site: Site, e_BTD: Tensor) -> tuple[ComposedState, None]:
        stream, rest_BTD = self.stream.inject(state.stream, site, e_BTD)
        return state._replace(stream=stream, rest_BTD=rest_BTD), None

    def read(self, state: ComposedState, site: Site) -> tuple[Tensor | QKV, ComposedState]:
        u, stream = self.stream.read(state.stream, site)
        x = QKV(*(self._enter(state, site, view) for view in u)) if isinstance(u, QKV) else self._enter(state, site, u)
        return x, state._replace(stream=stream)

    def _enter(self, state: ComposedState, site: Site, u_BTD: Tensor) -> Tensor:
        x_BTD = u_BTD if state.rest_BTD is None else u_BTD + state.rest_BTD
        for part in self.branches:
            x_BTD = part.enter(x_BTD, site)
        return x_BTD

    def write(self, state: ComposedState, site: Site, y_BTD: Tensor) -> ComposedState:
        for part in self.branches:
            y_BTD = part.leave(y_BTD, site)
        if state.rest_BTD is not None:
            y_BTD = y_BTD + state.rest_BTD
        return state._replace(stream=self.stream.write(state.stream, site, y_BTD), rest_BTD=None)

    def end(self, state: ComposedState) -> Tensor:
        return self.stream.end(state.stream)

    def get_streams(self, state: ComposedState) -> Tensor | None:
        return self.stream.get_streams(state.stream)

    def stream_map(self, state: ComposedState, site: Site) -> Tensor | None:
        return self.stream.stream_map(state.stream, site)

    def get_stream(self, state: ComposedState) -> Tensor | None:
        return self.stream.get_stream(state.stream)

    def replace_stream(self, state: ComposedState, x_BTD: Tensor) -> ComposedState:
        return state._replace(stream=self.stream.replace_stream(state.stream, x_BTD))

    # ---- inside attention

    def note_input(self, state: ComposedState, site: Site, x: Tensor | QKV) -> ComposedState:
        stream = self.stream.note_input(state.stream, site, x) if self.stream.taps_qkv else state.stream
        notes = zip(self.branches, state.memories, strict=True)
        memories = tuple(part.note(memory, site, x) if part.taps_qkv else memory for part, memory in notes)
        return state._replace(stream=stream, memories=memories)

    def tap_qkv(
        self, state: ComposedState, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, ComposedState]:
        stream, memories = state.stream, list(state.memories)
        if self.stream.taps_qkv:
            q_BHTK, k_BHTK, v_BHTK, stream = self.stream.tap_qkv(stream, site, q_BHTK, k_BHTK, v_BHTK)
        for i, part in enumerate(self.branches):
            if part.taps_qkv:
                q_BHTK, k_BHTK, v_BHTK, memories[i] = part.tap(memories[i], site, q_BHTK, k_BHTK, v_BHTK)
        return q_BHTK, k_BHTK, v_BHTK, state._replace(stream=stream, memories=tuple(memories))

    # ---- everything else: of all parts

    def visits(self, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        return self.stream.visits(sites)

    def owns_norm(self, site: Site | None) -> bool:
        return any(part.owns_norm(site) for part in (self.stream, *self.branches))

    def reset(self) -> None:
        for part in (self.stream, *self.branches):
            part.reset()

    def init_sublayer_(self, site: Site, sublayer: nn.Module) -> None:
        for part in (self.stream, *self.branches):
            part.init_sublayer_(site, sublayer)

    def param_groups(self) -> Iterator[ParamGroup]:
        for part in (self.stream, *self.branches):
            yield from part.param_groups()

    def on_step(self, step: int, max_steps: int) -> None:
        for part in (self.stream, *self.branches):
            part.on_step(step, max_steps)

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor | None:
        hooks = ("start", "enter", "leave")
        if any(
            getattr(type(part), hook) is not getattr(BranchStrategy, hook) for part in self.branches for hook in hooks
        ):
            return None  # a part stands between the stream and the sublayers: the weights are fitted
        return self.stream.mixing(sites, x0_BTD, y_BTD)


def _is_branch(make: Callable[..., Any]) -> bool:
    kind = make.func if isinstance(make, partial) else make
    return isinstance(kind, type) and issubclass(kind, BranchStrategy)


def _join_claims(claims: set[InitEquivalent]) -> InitEquivalent:
    """Return what parts are at init, given what those are that are not vanilla."""
    if not claims:
        return "vanilla"
    return claims.pop() if len(claims) == 1 else "other"


def _conflict(names: list[str], what: str) -> str:
    return f"residual: {names[0]} and {names[1]} both {what}, so they do not compose; leave one of them out"
