"""GPT: an embedding, a list of sublayer visits (sites), a residual strategy around them, a final norm and a head.

    state = begin(embedding(idx))
    for site in sites:   x, state = read(state, site);   y = F(N(x));   state = write(state, site, y)
    logits = cap(head(ln_f(end(state))))        cap: none, or c tanh(l / c) with `model.logit_softcap` c

The trunk depends on the contracts of `residual`, `norm`, `embedding` and `recurrence`, not on any method.
With the vanilla strategy, LayerNorm, tied embedding and biases it is Hugging Face's GPT2LMHeadModel.

Padded vocabulary: `vocab_size` 50304 is GPT-2's 50257 ids rounded up to a multiple of 128. Padding ids are ordinary
rows of the token table that never occur as a token. Their logits are part of the softmax in training and in every
evaluation (as in nanoGPT and the reference protocol), so training drives their probability towards zero; generation
never selects them.

Source: GPT-2 (Radford et al. 2019), section 2.3.
Shape letters: B batch, T tokens, D n_embd, V vocab_size, N = B * T rows.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from src.embedding.base import EmbeddingSpec, Lookup, adapt_embedding
from src.kernels.attention.mask import Mask
from src.kernels.autocast import capture_autocast, suspend_autocast
from src.kernels.cross_entropy import cap_logits, linear_cross_entropy, token_losses
from src.models.activations import recompute_in_backward
from src.models.attention import build_layer_masks
from src.models.block import Block, BranchNorms, Tap, add_to_views, build_branch_norms
from src.models.config import GPTConfig
from src.models.initial_weights import draw_weights_
from src.models.loops import cross_loops, require_one_stream
from src.models.mlp.base import MLP, CopiedLinear, MLPSpec
from src.models.mlp.gelu import GELU
from src.models.repeated_visits import copy_first_, require_skippable, select_first_visits
from src.models.trace import NullRecorder, Trace, TraceRecorder
from src.models.transfer import branch_scale, logit_scale, require_transferable_depth
from src.norm.base import NormSpec
from src.recurrence.base import Recurrence, RecurrenceSpec
from src.residual.base import QKV, ResidualStrategy, Site, StreamSpec, build_sites

EMBEDDING_KEYS = ("vocab_size", "n_embd", "block_size", "n_layer", "n_head", "bias", "dropout")

NormFactory = Callable[[NormSpec], nn.Module]
EmbeddingFactory = Callable[[EmbeddingSpec], nn.Module]  # of this contract, or written for the benchmark
MLPFactory = Callable[[MLPSpec], MLP]
RecurrenceFactory = Callable[[RecurrenceSpec], Recurrence]
StrategyFactory = Callable[[StreamSpec], ResidualStrategy[Any]]
Autocast = Callable[[], AbstractContextManager[Any]]  # that of the caller of a forward
State = Any  # each strategy has its own type


class GPT(nn.Module):
    """Language model in the style of GPT-2 with an interchangeable residual stream.

    Args:
        config: sizes.
        residual, norm, embedding, recurrence, mlp: factories that take the spec of their contract (None: no recurrence,
            and GPT-2's MLP).
        seed: seed of all initial weights; the trunk's do not depend on strategy or embedding.

    Raises:
        ValueError: the parts do not fit together.
    """

    gain: Tensor  # factor on the outputs of repeated visits

    def __init__(
        self,
        config: GPTConfig,
        *,
        residual: StrategyFactory,
        norm: NormFactory,
        embedding: EmbeddingFactory,
        seed: int,
        recurrence: RecurrenceFactory | None = None,
        mlp: MLPFactory | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.recurrence = (recurrence or Recurrence)(RecurrenceSpec(config.n_layer, config.n_embd, config.bias))
        sites = build_sites((visit.layer, visit.kinds) for visit in self.recurrence.visits())
        spec = StreamSpec(
            config.n_layer,
            config.n_head,
            config.n_embd,
            sites,
            lambda width: norm(NormSpec(width, config.bias)),
        )
        with torch.random.fork_rng(devices=[]):
            # reset() draws the initial weights again, except those of an embedding written for the benchmark.
            torch.manual_seed(seed)
            strategy = residual(spec)

            def build_norms(site: Site) -> BranchNorms:
                return build_branch_norms(config, strategy, site, spec.norm)

            # Sites: the strategy may add visits; the first visit to a sublayer decides which norms it has.
            self.sites = strategy.visits(sites)
            self.early_sites = select_first_visits(self.sites)
            require_skippable(self.recurrence, strategy)
            require_transferable_depth(config, strategy)
            self.loops = self.recurrence.loops
            if self.loops is not None:
                require_one_stream(self.loops, strategy, self.sites, config.n_embd)
            self.adapter = None if self.loops is None else self.recurrence.build_adapter()
            first = {(site.layer, site.kind): site for site in reversed(self.sites)}
            n_mlp = Counter(site.layer for site in self.sites if site.kind == "mlp")
            sizes = (config.n_embd, config.bias, config.dropout, config.gelu_approximate)
            self.h = nn.ModuleList(
                Block(
                    config,
                    build_norms(first[layer, "attn"]) if (layer, "attn") in first else None,
                    build_norms(first[layer, "mlp"]),
                    (mlp or GELU)(MLPSpec(*sizes, n_mlp[layer] if layer in self.recurrence.untied else 1)),
                )
                for layer in range(config.n_layer)
            )
            self.repeats = {s.block for s in self.sites} - {s.block for s in self.early_sites}
            self.recurs = True
            self.checkpoints_activations = False  # True: training keeps the inputs of sublayers, not what is inside
            self.register_buffer("gain", torch.ones(()), persistent=False)
            self.branch_scale, self.logit_scale = branch_scale(config), logit_scale(config)
            self.ln_f = None if strategy.owns_norm(None) else spec.norm()
            self.residual = strategy
            keys = {key: getattr(config, key) for key in EMBEDDING_KEYS}
            shape = EmbeddingSpec(**keys, learned_positions=config.positions == "learned")
            self.embedding = adapt_embedding(embedding(shape), shape)
        self.reset(seed)

    def reset(self, seed: int) -> None:
        """Draw all initial weights: of the trunk, then of the embedding, then of the strategy."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            draw_weights_([*self.h.named_modules(prefix="h"), *self.embedding.named_modules()], self.config)
            self.embedding.reset()
            self.residual.reset()
            if self.adapter is not None:
                self.adapter.reset()
            with torch.no_grad():
                for site in self.sites:
                    if site.visit == 0:
                        self.residual.init_sublayer_(site, self.sublayer(site))
                        if self.config.zero_init_outputs:
                            self.sublayer(site).get_parameter("c_proj.weight").zero_()
        for param in self.copied_params():
            copy_first_(param.data)

    @property
    def active_sites(self) -> tuple[Site, ...]:
        """Sites that a forward visits now: all, or only first visits before repeated ones start."""
        return self.sites if self.recurs else self.early_sites

    def follow(self, step: int, max_steps: int) -> None:
        """Set schedules and active sites to optimizer step `step` (0-based) of `max_steps`."""
        self.residual.on_step(step, max_steps)
        if self.recurrence.delayed:
            self.recurs = step >= self.recurrence.start_step(max_steps)
            self.gain.fill_(self.recurrence.gain(step, max_steps))

    def copied_params(self) -> list[nn.Parameter]:
        """Return the parameters with one copy per visit, shape [copies, ...] (see `repeated_visits.py`)."""
        return [p for m in self.h.modules() if isinstance(m, CopiedLinear) for p in m.parameters()]

    def hidden(self, idx_BT: Tensor, recorder: NullRecorder | None = None, document_BT: Tensor | None = None) -> Tensor:
        """Return the head's input [B, T, D] for token ids [B, T]; the other arguments are those of `run_trunk`."""
        return self.head_input(self.run_trunk(idx_BT, recorder or NullRecorder(), document_BT))

    def trace(self, idx_BT: Tensor, document_BT: Tensor | None = None) -> tuple[Tensor, Trace]:
        """Return `hidden` and a record of the forward that computed it."""
        recorder = TraceRecorder()
        end_BTD = self.run_trunk(idx_BT, recorder, document_BT)
        return self.head_input(end_BTD), recorder.build_trace(end_BTD)

    def run_trunk(self, idx_BT: Tensor, recorder: NullRecorder, document_BT: Tensor | None = None) -> Tensor:
        """Run the embedding and all active sites; return the strategy's `end` [B, T, D], the final norm's input.

        `recorder` sees every stage. Attention stays within tokens of one number in `document_BT`, if it is given.
        The stream is computed outside autocast, in float32; sublayers run under the caller's autocast.
        """
        autocast = capture_autocast(idx_BT)
        with suspend_autocast(idx_BT):
            x0_BTD = self.embedding(idx_BT)
            lookup = self.embedding.lookup(idx_BT)
            masks = build_layer_masks(self.config, x0_BTD, document_BT, training=self.training)
            state = self.residual.begin(x0_BTD)
            recorder.record_start(x0_BTD, state)
            anchor_BTD: Tensor | None = None
            for site in self.active_sites:
                # Loop: where one starts or the last one ends, the stream passes the recurrence's adapter or a norm.
                if self.loops is not None and self.adapter is not None and site.opens_block:
                    parts = (self.loops, self.adapter, self.residual, self.apply_final_norm)
                    state, anchor_BTD = cross_loops(*parts, site, state, anchor_BTD, autocast)
                # Inject: the embedding's addition to this layer enters the stream; `rest` is what the strategy declines.
                state, rest_BTD = self._inject(state, site, lookup, recorder)
                # Read: the strategy mixes the sublayer's input from the stream.
                x, state = self.residual.read(state, site)
                x = add_to_views(x, rest_BTD)
                # Sublayer: attention or MLP with its norms.
                y_BTD, state = self._apply_sublayer(state, site, x, lookup, masks[site.layer], autocast)
                y_BTD = recorder.replace_output(site, y_BTD)
                y_BTD = y_BTD if rest_BTD is None else y_BTD + rest_BTD
                # Write: the strategy adds the sublayer's output to the stream.
                state = self.residual.write(state, site, y_BTD)
                # Record: a no-op except in `trace` and in an analysis.
                recorder.record_site(site, x, y_BTD, state)
            return self.residual.end(state)

    def _inject(self, state: State, site: Site, lookup: Lookup, recorder: NullRecorder) -> tuple[State, Tensor | None]:
        """Return the state with the embedding's addition before `site`, and what the strategy declined."""
        addition_BTD = self.embedding.stream_addition(lookup, site.layer) if site.opens_block else None
        if addition_BTD is None:
            return state, None
        state, rest_BTD = self.residual.inject(state, site, addition_BTD)
        recorder.record_injection(addition_BTD, in_stream=rest_BTD is None)
        return state, rest_BTD

    def _apply_sublayer(
        self, state: State, site: Site, x: Tensor | QKV, lookup: Lookup, mask: Mask | None, autocast: Autocast
    ) -> tuple[Tensor, State]:
        """Return the output [B, T, D] of a site's sublayer, and the state, which `tap_qkv` may have replaced."""
        is_attention = site.kind == "attn"
        add_to_values = partial(self.embedding.value_addition, lookup, site.layer) if is_attention else None
        taps = self.residual.taps_qkv and is_attention

        def visit(x: Tensor | QKV, before: State) -> tuple[Tensor, State]:
            tap = Tap(self.residual, site, before) if taps else None
            with autocast():
                y_BTD = self._block(site).branch(site, x, tap, add_to_values, mask)
            return y_BTD, None if tap is None else tap.state

        run = recompute_in_backward(visit, self.config.dropout) if self.checkpoints_activations else visit
        y_BTD, after = run(x, state if taps else None)  # a state that nothing taps may be freed
        # The outputs of repeated visits may grow from 0 to 1 over some steps (recurrence.ramp_steps).
        if self.recurrence.delayed and site.block in self.repeats:
            y_BTD = y_BTD * self.gain
        if self.branch_scale != 1:
            y_BTD = y_BTD * self.branch_scale
        return y_BTD, after if taps else state

    def head_input(self, end_BTD: Tensor) -> Tensor:
        """Return the head's input [B, T, D] for the strategy's `end`."""
        x_BTD = self.apply_final_norm(end_BTD)
        return x_BTD if self.logit_scale == 1 else x_BTD * self.logit_scale

    def apply_final_norm(self, x_BTD: Tensor) -> Tensor:
        """Norm the strategy's `end` [B, T, D]; unchanged if the strategy owns the final norm."""
        if self.ln_f is None:
            return x_BTD
        with suspend_autocast(x_BTD):
            normed_BTD: Tensor = self.ln_f(x_BTD)
        return normed_BTD

    def _block(self, site: Site) -> Block:
        return cast(Block, self.h[site.layer])

    def sublayer(self, site: Site) -> nn.Module:
        """Return the attention or MLP that a site visits."""
        return self._block(site).get_submodule(site.kind)

    def forward(self, idx_BT: Tensor) -> Tensor:
        """Return logits [B, T, V] for token ids [B, T]."""
        return self.apply_head(self.hidden(idx_BT))

    def apply_head(self, x_BTD: Tensor) -> Tensor:
        """Return logits [..., V] for rows [..., D] of the output of `hidden`."""
        logits_BTV = nn.functional.linear(x_BTD, self.embedding.get_lm_head_weight())
        return cap_logits(logits_BTV, self.config.logit_softcap)

    def loss(self, idx_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean next-token loss in nats, 0-dim, without materializing the logits of the whole batch."""
        return self.head_loss(self.hidden(idx_BT), targets_BT)

    def head_loss(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean next-token loss in nats for the output [B, T, D] of `hidden`."""
        weight_VD, softcap = self.embedding.get_lm_head_weight(), self.config.logit_softcap
        return linear_cross_entropy(x_BTD.flatten(0, 1), weight_VD, targets_BT.flatten(), softcap=softcap)

    @torch.no_grad()
    def token_losses(
        self,
        idx_BT: Tensor,
        targets_BT: Tensor,
        recorder: NullRecorder | None = None,
        document_BT: Tensor | None = None,
    ) -> Tensor:
        """Return the next-token loss in nats of every token, [B, T]; `recorder` and `document_BT` as in `hidden`."""
        x_ND, weight_VD = self.hidden(idx_BT, recorder, document_BT).flatten(0, 1), self.embedding.get_lm_head_weight()
        loss_N = token_losses(x_ND, weight_VD, targets_BT.flatten(), softcap=self.config.logit_softcap)
        return loss_N.view(targets_BT.shape)

    def n_params(self, *, positions: bool) -> int:
        """Return the number of parameters, shared ones counted once; nanoGPT's count excludes positions."""
        total = sum(p.numel() for p in self.parameters())
        return total if positions else total - self.embedding.get_num_pos_params()
