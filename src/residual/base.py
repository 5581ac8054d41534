"""Contract of a residual strategy: how the outputs of sublayers are combined and read.

The trunk (`src/models/gpt.py`) visits an ordered list of *sites*, each an attention or MLP sublayer F_k with its input
norm N_k. It calls four methods of the strategy, outside autocast:

    state = begin(x0)                       x0: output of the embedding
    for site in sites:
        x, state = read(state, site)        x: input of the sublayer
        y = F_k(N_k(x))
        state = write(state, site, y)
    x = end(state)                          x: input of the final norm

A new strategy is one file with one class, one YAML with its keys, and one test. Example: one gate per sublayer,
x <- x + gate[k] * y, with `SingleStream` of `families/single_stream.py` (begin returns x0, read and end the state):

    class GatedSublayers(SingleStream):
        def __init__(self, spec: StreamSpec, *, gate_init: float, lr_scale: float) -> None:
            super().__init__()
            self.lr_scale = lr_scale
            self.gate_S = nn.Parameter(torch.full((spec.n_site,), gate_init))     # one packed tensor, one row per site

        def param_groups(self) -> Iterator[ParamGroup]:                           # optional: lr scale, weight decay
            yield ParamGroup((self.gate_S,), self.lr_scale)

        def write(self, state: Tensor, site: Site, y_BTD: Tensor) -> Tensor:
            return torch.addcmul(state, self.gate_S[site.index], y_BTD)

Rules:
- State is returned, never kept on `self`: a Tensor, or a NamedTuple of tensors or tuples of tensors. A forward may be
  compiled, and several may run before one backward. A tuple of 0 or 1 tensors in it is an optional tensor.
- Parameters per site are rows of one packed tensor, indexed by `site.index`: one optimizer kernel, and under DDP a
  gradient in every step, which every parameter must receive; that of an unused row is zero.
- The constructor takes `(spec, *, <the keys of the YAML>)`; it depends on `spec.sites`, which `recurrence` changes.

Norm, embedding, recurrence, norm placement and positions compose with every strategy, except: a strategy that places
norms itself (`owns_norm`) needs model.norm_placement=pre, and one without `may_skip` needs recurrence.start_step=0.

Strategies compose with each other, `residual=[lns,resformer]`, if at most one of them defines the stream. The others
are *branch strategies* (`families/branch.py`): they change the input or output of a sublayer, its values, or the start
of the streams, and apply in the order of the list (`composed.py`).

Shape letters: B batch, T tokens, D n_embd, H heads, K head size, L n_layer, S sites, N streams.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, Literal, NamedTuple, TypeVar, cast

from torch import Tensor, nn

from src.source import Source

StateT = TypeVar("StateT")
Kind = Literal["attn", "mlp"]
InitEquivalent = Literal["vanilla", "near vanilla", "identity", "near identity", "other"]


@dataclass(frozen=True)
class Site:
    """One visit to one sublayer.

    Args:
        index: position in visiting order, 0..S-1; per-site parameters are rows `index` of one packed tensor.
        block: position of the visit to the layer, in visiting order; equals `layer` without recurrence.
        layer: index of the layer, 0..L-1.
        kind: "attn" or "mlp".
        visit: number of earlier visits to the same sublayer; 0 without recurrence.
        opens_block, closes_block: True for the first and the last sublayer of a visit to a layer.
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
        """Index of the sublayer, the same for all its visits."""
        return 2 * self.layer + (self.kind == "mlp")


def build_sites(visits: Iterable[tuple[int, tuple[Kind, ...]]]) -> tuple[Site, ...]:
    """Build the sites of an ordered list of visits, each a layer and the sublayers visited in it."""
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
    """Build the sites of a plain trunk: attention, then MLP, of each layer in order."""
    return build_sites((layer, ("attn", "mlp")) for layer in range(n_layer))


class QKV(NamedTuple):
    """Separate inputs of the query, key and value projections of an attention site."""

    q_BTD: Tensor
    k_BTD: Tensor
    v_BTD: Tensor


@dataclass(frozen=True)
class StreamSpec:
    """Description of the trunk that a strategy is built for.

    Args:
        n_layer, n_head, n_embd: sizes of the trunk.
        sites: all sites in visiting order.
        make_norm: builds one norm of the configured kind for a width.
        n_stream: number of streams of full width of the strategy that a branch strategy composes with.
    """

    n_layer: int
    n_head: int
    n_embd: int
    sites: tuple[Site, ...]
    make_norm: Callable[[int], nn.Module]
    n_stream: int = 1

    @property
    def n_site(self) -> int:
        """Number of sites, S."""
        return len(self.sites)

    @property
    def rows(self) -> dict[int, int]:
        """Map from `Site.sublayer` to a row 0.., one row per sublayer that is visited at all."""
        return {sublayer: row for row, sublayer in enumerate(dict.fromkeys(s.sublayer for s in self.sites))}

    @property
    def n_block(self) -> int:
        """Number of visits to layers; n_layer without recurrence."""
        return self.sites[-1].block + 1

    def norm(self) -> nn.Module:
        """Build one norm over n_embd channels."""
        return self.make_norm(self.n_embd)


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with their own learning-rate scale and weight decay; `optimizer=muon` leaves them to AdamW.

    Args:
        params: parameters of the group.
        lr_scale: factor on the schedule's learning rate.
        decay: True applies `optimizer.weight_decay`.
        lr: peak learning rate instead of `optimizer.lr`, in the shape of the schedule; `lr_scale` still applies.
        weight_decay: weight decay instead of `optimizer.weight_decay`, for sources that give an absolute value.
    """

    params: tuple[nn.Parameter, ...]
    lr_scale: float = 1.0
    decay: bool = False
    lr: float | None = None
    weight_decay: float | None = None


class ResidualStrategy(nn.Module, ABC, Generic[StateT]):
    """Base class of all residual strategies; the module docstring explains the contract."""

    #: Publication and code of the method, and deviations.
    source: ClassVar[Source]
    #: True for strategies that implement `tap_qkv`.
    taps_qkv: ClassVar[bool] = False
    #: True for strategies that stay valid while repeated visits are skipped (`recurrence` with a start).
    may_skip: ClassVar[bool] = False
    #: True if `end` is defined for the state after every site, not only after the last one.
    ends_anywhere: ClassVar[bool] = True
    #: The function that the shipped configuration equals at initialization, up to rounding; `other` if none of these.
    init_equivalent: ClassVar[InitEquivalent] = "other"
    #: Values of keys that earlier configurations lack, and for keys that went, what to do instead.
    added_keys: ClassVar[Mapping[str, object]] = {}
    removed_keys: ClassVar[Mapping[str, str]] = {}
    #: For `models/transfer.py`: parameters whose products sum over the width, and whether branches scale with depth.
    width_readers: ClassVar[tuple[str, ...]] = ()
    has_depth_rule: ClassVar[bool] = False
    #: Number of streams of full width; with several, `begin_streams` may start them apart.
    n_stream: int = 1

    @abstractmethod
    def begin(self, x0_BTD: Tensor) -> StateT:
        """Return the initial state for the embedding output [B, T, D]."""

    def begin_streams(self, h_BTND: Tensor) -> StateT:
        """Return the initial state for `n_stream` streams that a branch strategy has started apart."""
        raise NotImplementedError

    @abstractmethod
    def read(self, state: StateT, site: Site) -> tuple[Tensor | QKV, StateT]:
        """Return the input [B, T, D] of `site` (or `QKV` at an attention site), and the state after reading."""

    @abstractmethod
    def write(self, state: StateT, site: Site, y_BTD: Tensor) -> StateT:
        """Return the state with the output [B, T, D] of `site`, bfloat16 under bf16 autocast; keep the stream float32."""

    @abstractmethod
    def end(self, state: StateT) -> Tensor:
        """Return the input of the final norm, [B, T, D]."""

    # ---- the stream itself: recurrences change it between layers, embeddings add to it

    def get_stream(self, state: StateT) -> Tensor | None:
        """Return the stream [B, T, D] if the state is one stream, apart from memories; None if it is something else."""
        return state if isinstance(state, Tensor) else None

    def replace_stream(self, state: StateT, x_BTD: Tensor) -> StateT:
        """Return the state with another stream; called where `get_stream` returned one."""
        return cast(StateT, x_BTD)

    def inject(self, state: StateT, site: Site, e_BTD: Tensor) -> tuple[StateT, Tensor | None]:
        """Add an embedding's addition [B, T, D] to the stream before `site`, which opens a layer, reads.

        Returns the state, and the part that was not added (None: all was), which the trunk adds to the input and to the
        output of `site`. By default a state that is one tensor takes everything, any other state nothing.
        """
        if isinstance(state, Tensor):
            return cast(StateT, state + e_BTD), None
        return state, e_BTD

    # ---- order of visits, and norms: by default the trunk builds an input norm per sublayer and a final norm

    def visits(self, sites: tuple[Site, ...]) -> tuple[Site, ...]:
        """Return the sites that the trunk visits, in order; one that visits a sublayer again has a new index."""
        return sites

    def owns_norm(self, site: Site | None) -> bool:
        """Return True if the strategy builds the norm of `site` (None: the final one) by `spec.norm()`, not the trunk."""
        return False

    def norms_each_view(self, site: Site) -> bool:
        """Return True if the trunk norms the inputs of q, k and v at an attention site by three norms, each its own.

        Then `read` may return one tensor, too, which the norms make into three views. By default all views share a norm.
        """
        return False

    # ---- initial weights, optimizer and schedule; inside attention

    def reset(self) -> None:
        """Draw random initial values of the strategy's parameters; called once, seeded, after the trunk's."""

    def init_sublayer_(self, site: Site, sublayer: nn.Module) -> None:
        """Change the initial weights of a sublayer in place; called once per sublayer, after the trunk's init."""

    def param_groups(self) -> Iterator[ParamGroup]:
        """Yield the strategy's parameters in groups; by default one with lr x 1 and no weight decay."""
        params = tuple(self.parameters())
        if params:
            yield ParamGroup(params)

    def on_step(self, step: int, max_steps: int) -> None:
        """Fill schedule-driven buffers before optimizer step `step` (0-based) of `max_steps`.

        Called outside the compiled graph. Write tensors in place (`buffer.fill_`), so that the graph is compiled once;
        register them as non-persistent, since they follow from `step`.
        """

    def note_input(self, state: StateT, site: Site, x: Tensor | QKV) -> StateT:
        """Return the state after the normed input of attention is known; called before `tap_qkv`, needs `taps_qkv`."""
        return state

    def tap_qkv(
        self, state: StateT, site: Site, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, StateT]:
        """Replace queries, keys and values after their projection, before QK-norm and rotation; needs `taps_qkv`."""
        raise NotImplementedError

    # ---- the log, figures and analyses

    def describe(self) -> str:
        """Return one line for the log on what follows from the keys and the trunk's size, such as a number of groups."""
        return ""

    def mixing(self, sites: tuple[Site, ...], x0_BTD: Tensor, y_BTD: tuple[Tensor, ...]) -> Tensor | None:
        """Return the weights [S + 1, S + 1] with which sites read earlier outputs, as a mean over tokens.

        Row k is the input of the k-th site, the last row the result of `end`; column 0 is x0, column j + 1 the output
        of the j-th site. None if the strategy has no such weights; they are then fitted (`models/stream_probe.py`).
        """
        return None

    def get_streams(self, state: StateT) -> Tensor | None:
        """Return the streams [B, T, N, D] of a state that holds several of full width; None if it is something else."""
        return None

    def stream_map(self, state: StateT, site: Site) -> Tensor | None:
        """Return R [B, T, N, N] where reading `site` maps the streams (or parts of one) to R H; None without such R."""
        return None
