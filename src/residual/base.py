"""The contract between the trunk and a residual strategy.

A GPT is an ordered list of *sites*, visits to attention or MLP sublayers F_k. A strategy decides what
flows between them, in four verbs that the trunk calls outside autocast:

    state = begin(x0)
    for site in sites:
        x, state = read(state, site)        what the sublayer is given
        y = F_site(N_site(x))               the sublayer, with its input norm
        state = write(state, site, y)
    x = end(state)                          then the final norm and the head

State is passed, never stashed: a NamedTuple of tensors (or of tuples of tensors). All a strategy knows
about what has happened is in its state; all it knows about what comes is in `spec.sites`.
Everything else in this file is optional, costs nothing where it is not used, and says so.

Source: the interface study over some fifty published variants, each of which fits these verbs.
Shape letters: B batch, T tokens, D n_embd, H heads, K head size, L n_layer, S sites, N streams.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

from torch import Tensor, nn

StateT = TypeVar("StateT")
Kind = Literal["attn", "mlp"]
InitEquivalent = Literal["vanilla", "near vanilla", "identity", "near identity", "other"]


@dataclass(frozen=True)
class Site:
    """One visit to one sublayer.

    `index` names the visit for good (0..S-1, in visiting order): per-site parameters are rows `index`
    of one packed tensor. `block` counts the visits to layers in the same way (it equals `layer` unless
    layers recur). `visit` counts the visits to the same sublayer (0 unless layers recur).
    `opens_block` and `closes_block` mark the first and last sublayer of a visit to a layer.
    """

    index: int
    block: int
    layer: int
    kind: Kind
    visit: int
    opens_block: bool
    closes_block: bool

    @property
    def sublayer(self) -> int:
        """Which sublayer it visits, the same for every visit."""
        return 2 * self.layer + (self.kind == "mlp")


def build_sites(visits: Iterable[tuple[int, tuple[Kind, ...]]]) -> tuple[Site, ...]:
    """The sites of visits to layers, each given by the layer and the sublayers it takes."""
    sites: list[Site] = []
    seen: dict[tuple[int, Kind], int] = {}
    for block, (layer, kinds) in enumerate(visits):
        for i, kind in enumerate(kinds):
            visit = seen.get((layer, kind), 0)
            seen[layer, kind] = visit + 1
            opens, closes = i == 0, i == len(kinds) - 1
            sites.append(Site(len(sites), block, layer, kind, visit, opens_block=opens, closes_block=closes))
    return tuple(sites)


def build_plain_sites(n_layer: int) -> tuple[Site, ...]:
    """Attention then MLP of each layer, layers in order."""
    return build_sites((layer, ("attn", "mlp")) for layer in range(n_layer))


class QKV(NamedTuple):
    """Separate inputs for an attention site's query, key and value projections."""

    q_BTD: Tensor
    k_BTD: Tensor
    v_BTD: Tensor


@dataclass(frozen=True)
class StreamSpec:
    """What a strategy is told about the trunk that it will serve.

    `make_norm(width)` builds one norm of the configured kind, for strategies that place norms themselves.
    """

    n_layer: int
    n_head: int
    n_embd: int
    sites: tuple[Site, ...]
    make_norm: Callable[[int], nn.Module]

    @property
    def n_site(self) -> int:
        """S, the number of visits to sublayers."""
        return len(self.sites)

    @property
    def rows(self) -> dict[int, int]:
        """A row for every sublayer that is visited, however often, by `Site.sublayer`."""
        return {sublayer: row for row, sublayer in enumerate(dict.fromkeys(s.sublayer for s in self.sites))}

    @property
    def n_block(self) -> int:
        """The number of visits to layers; n_layer unless layers recur."""
        return self.sites[-1].block + 1

    def norm(self) -> nn.Module:
        """One norm over the stream's width."""
        return self.make_norm(self.n_embd)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with an optimizer treatment of their own.

    The schedule's learning rate is multiplied by `lr_scale`; `decay` applies `optimizer.weight_decay`.
    AdamW steps them under every `optimizer`.
    """

    params: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    decay: bool = False


class ResidualStrategy(nn.Module, ABC, Generic[StateT]):
    """What flows between sublayers. Subclasses take `(spec, *, <the keys of their YAML>)`."""

    #: Set to True by strategies that implement `tap_qkv`.
    taps_qkv: ClassVar[bool] = False
    #: Set to True by strategies that hold where visits to a layer after its first are left out for a while.
    may_skip: ClassVar[bool] = False
    #: The function that the shipped configuration equals at initialization, up to rounding; `other` if none of these.
    init_equivalent: ClassVar[InitEquivalent] = "other"

    @abstractmethod
    def begin(self, x0_BTD: Tensor) -> StateT:
        """Open the stream on the embedding output [B, T, D]."""

    @abstractmethod
    def read(self, state: StateT, site: Site) -> tuple[Tensor | QKV, StateT]:
        """What `site` is given, [B, T, D] (or `QKV` at an attention site), and the state after reading."""

    @abstractmethod
    def write(self, state: StateT, site: Site, y_BTD: Tensor) -> StateT:
        """Take in the output [B, T, D] of `site`; under bf16 it arrives in bf16, the stream stays float32."""

    @abstractmethod
    def end(self, state: StateT) -> Tensor:
        """Close the stream: what the final norm is given, [B, T, D]."""

    # ---- the order of visits

    def visits(self, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        """The sites that the trunk visits, in order; by default those of `spec`, which are given.

        A strategy that visits a sublayer again returns more of them, indexed anew.
        """
        return sites

    # ---- norms: by default every branch has its input norm and the trunk its final norm

    def owns_norm(self, site: Site | None) -> bool:
        """Whether the strategy places the norm of `site` (None: the final norm) itself.

        The trunk then builds none there, so no norm exists that nobody uses; the strategy builds its
        own from `spec.norm()`.
        """
        return False

    # ---- additions to the stream from outside

    def inject(self, state: StateT, site: Site, e_BTD: Tensor) -> tuple[StateT, Tensor | None]:
        """Take an embedding's addition [B, T, D] into the stream, before `site`, which opens a layer, reads it.

        Returns the state, and what it did not take (None: nothing): the trunk then gives `site` its input
        plus that, and writes its output plus that. On a stream that reads and writes with weight 1 both
        ways are the same. By default a state that is one tensor takes all, any other state nothing.
        """
        if isinstance(state, Tensor):
            return cast(StateT, state + e_BTD), None
        return state, e_BTD

    # ---- weights and the optimizer

    def reset(self) -> None:
        """Draw the strategy's own random initial values; called once, after the trunk's, seeded."""
        return

    def init_sublayer_(self, site: Site, sublayer: nn.Module) -> None:
        """Change a sublayer's initial weights in place; called once a sublayer, after the trunk's init."""
        return

    def param_groups(self) -> Iterator[ParamGroup]:
        """The strategy's parameters by optimizer treatment; by default lr x 1 and no weight decay."""
        params = tuple(self.parameters())
        if params:
            yield ParamGroup(params)

    # ---- the schedule

    def on_step(self, step: int, max_steps: int) -> None:
        """Fill schedule-driven buffers before optimizer step `step` (0-based) of `max_steps`.

        Called once an optimizer step, never inside the compiled graph. Write tensors in place
        (`buffer.fill_`), so that one graph serves all steps; keep them non-persistent, since they
        follow from `step` alone.
        """
        return

    # ---- inside attention

    def tap_qkv(
        self, state: StateT, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, StateT]:
        """Replace queries, keys and values between their projection and any rotation; needs `taps_qkv`."""
        raise NotImplementedError

    # ---- what a picture shows

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor | None:
        """The weights with which each site reads each earlier output, where the strategy has such.

        Given the sites that were visited, and the embedding and their outputs on some batch, returns
        [S + 1, S + 1]: row k what the k-th of them is given (the last row: what `end` returns), column 0
        the weight of x0 and column j + 1 that of the j-th output, the mean over tokens. None: the weights
        are to be measured from outside.
        """
        return None
