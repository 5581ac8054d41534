"""`bench.peer`: from module:function to something that takes turns with ours, its losses held against ours."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.bench.candidates import Entrant, device_of, split_name, state_tensors
from src.bench.step import StepSpec, optimizer_step
from src.bench.stopwatch import Lap, no_lap
from src.errors import UserError, one_line
from src.models.flops import count_flops_per_token
from src.settings.read import Settings
from src.training.process import choose_products
from src.training.run import build_gpt

OWN = "benchmarks.peers"
LOSS_STEPS = 3
#: Relative; float32 gives 1e-6, bf16 with other kernels a few 1e-4.
LOSS_TOLERANCE = 2e-3


def sizes_of(settings: Settings) -> StepSpec:
    """Those of a configuration."""
    model, optimizer, trainer = settings.model, settings.optimizer, settings.trainer
    return StepSpec(
        model.n_layer,
        model.n_head,
        model.n_embd,
        model.block_size,
        model.vocab_size,
        model.bias,
        optimizer.lr,
        optimizer.weight_decay,
        optimizer.grad_clip,
        settings.seed,
        device_of(settings),
        "bfloat16" if trainer.precision == "bf16-mixed" else "float32",
        grad_accum=1,
    )


@dataclass(frozen=True)
class PeerEntry:
    """A peer by name, under one configuration's sizes."""

    name: str
    function: Callable[[Any], Any]
    settings: Settings

    def build(self) -> Entrant:
        """Its model and step."""
        model, theirs, *optimizer = self.function(sizes_of(self.settings))

        def step(x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor:
            choose_products(self.settings.trainer)
            loss: Tensor = theirs(x, y)
            return loss

        sizes = self.settings.model
        return Entrant(
            step,
            int(self.settings.config["data"]["micro_batch_size"]),
            sizes.block_size,
            sizes.vocab_size,
            sum(p.numel() for p in model.parameters()),
            flops_per_token(self.settings),
            lambda: state_tensors(list(model.parameters()), *optimizer),
        )

    def loss_gap(self) -> float | None:
        """The largest relative gap to our losses, same weights, same batches; None where weights do not fit."""
        model, theirs, *_ = self.function(sizes_of(self.settings))
        keys, device = self.settings, next(model.parameters()).device
        gpt = build_gpt(keys).to(device)
        try:
            gpt.load_nanogpt_state_dict(model.state_dict())
        except (RuntimeError, KeyError):
            return None
        bf16 = keys.trainer.precision == "bf16-mixed"
        ours, _ = optimizer_step(gpt, keys.optimizer, bf16=bf16, compiled=False, n_micro=1)
        generator = torch.Generator().manual_seed(keys.seed)
        shape = (int(keys.config["data"]["micro_batch_size"]), keys.model.block_size + 1)
        gaps = []
        for _ in range(LOSS_STEPS):
            tokens = torch.randint(keys.model.vocab_size, shape, generator=generator).to(device)
            a, b = (float(step(tokens[:, :-1], tokens[:, 1:])) for step in (ours, theirs))
            gaps.append(abs(a - b) / abs(a))
        return max(gaps)


def flops_per_token(settings: Settings) -> int:
    """FLOPs of a token by our own count, without weights."""
    with torch.device("meta"):
        return count_flops_per_token(build_gpt(settings))


def read_peers(texts: Sequence[str], settings: Settings, trusted: Sequence[str]) -> list[PeerEntry]:
    """`module:function` or `name: module:function`.

    Raises:
        UserError: it names code that nobody trusts, or nothing that can be called; or ours steps under Muon.
    """
    if texts and settings.optimizer.muon is not None:
        raise UserError(f"bench.peer={texts[0]} steps under AdamW; leave out optimizer=muon, or the peer")
    return [_read(text, settings, trusted) for text in texts]


def _read(text: str, settings: Settings, trusted: Sequence[str]) -> PeerEntry:
    name, target = split_name(text)
    module, colon, function = target.partition(":")
    if not (module and colon and function):
        raise UserError(f"bench.peer={text} must be module:function, such as {OWN}:plain")
    package = module.partition(".")[0]
    if module != OWN and not any(f"{module}.".startswith(f"{known}.") for known in trusted):
        raise UserError(
            f"bench.peer={target} is no peer of this project; "
            f"if you trust it, say so on the command line: trusted_targets=[{package}]"
        )
    try:
        called = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"bench.peer={target} cannot be imported ({one_line(error)}); is its folder on PYTHONPATH?"
        ) from error
    if not callable(called) or (isinstance(called, type) and issubclass(called, nn.Module)):
        raise UserError(f"bench.peer={target} is no function(spec) -> (model, step)")
    return PeerEntry(function if name == text else name, called, settings)
