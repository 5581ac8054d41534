"""Peers of a benchmark: training steps by other code, timed beside ours after their losses are compared with ours."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from src.bench.candidates import BuiltCandidate, device_of, split_name, state_tensors
from src.bench.step import Lap, StepSpec, no_lap, optimizer_step
from src.errors import UserError, one_line
from src.models.flops import count_flops_per_token
from src.models.formats.nanogpt import load_nanogpt
from src.models.optim.adamw import AdamW
from src.settings.read import Settings
from src.training.process import choose_products
from src.training.run import build_gpt

#: The package of this repository whose functions need no `trusted_targets`.
OWN = "benchmarks"
LOSS_STEPS = 3
#: Largest relative loss gap of an equal peer: float32 reaches 1e-6, bf16 with other kernels a few 1e-4.
LOSS_TOLERANCE = 2e-3


@dataclass(frozen=True)
class Peer:
    """Name of a peer, its function(spec) -> (model, step[, optimizer]) and the settings whose sizes it takes."""

    name: str
    function: Callable[[Any], Any]
    settings: Settings

    def build(self) -> BuiltCandidate:
        """Build the peer's model and its step."""
        model, take_step, *optimizer = self.function(step_spec(self.settings))

        def step(x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor:
            choose_products(self.settings.trainer)
            loss: Tensor = take_step(x, y)
            return loss

        sizes = self.settings.model
        with torch.device("meta"):  # our count of FLOPs, for every peer; no weights are allocated
            flops_per_token = count_flops_per_token(build_gpt(self.settings))
        return BuiltCandidate(
            step=step,
            micro_batch_size=int(self.settings.config["data"]["micro_batch_size"]),
            block_size=sizes.block_size,
            vocab_size=sizes.vocab_size,
            n_params=sum(p.numel() for p in model.parameters()),
            flops_per_token=flops_per_token,
            state_tensors=lambda: state_tensors(list(model.parameters()), *optimizer),
        )

    def loss_gap(self) -> float | None:
        """Return the largest relative gap to our losses over a few steps on the same batches from the same weights.

        None if the peer's weights do not fit our model.
        """
        settings = self.settings
        model, peer_step, *_ = self.function(step_spec(settings))
        device = next(model.parameters()).device
        gpt = build_gpt(settings).to(device)
        try:
            load_nanogpt(gpt, model.state_dict())
        except (RuntimeError, KeyError):
            return None
        bf16 = settings.trainer.precision == "bf16-mixed"
        our_step, _ = optimizer_step(gpt, settings.optimizer, bf16=bf16, compiled=False, n_micro=1)
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (int(settings.config["data"]["micro_batch_size"]), settings.model.block_size + 1)
        gaps = []
        for _ in range(LOSS_STEPS):
            tokens = torch.randint(settings.model.vocab_size, shape, generator=generator).to(device)
            ours, theirs = (float(step(tokens[:, :-1], tokens[:, 1:])) for step in (our_step, peer_step))
            gaps.append(abs(ours - theirs) / abs(ours))
        return max(gaps)


def step_spec(settings: Settings) -> StepSpec:
    """Return the sizes and hyperparameters that a peer's function takes."""
    model, optimizer, trainer = settings.model, settings.optimizer, settings.trainer
    return StepSpec(
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_embd=model.n_embd,
        block_size=model.block_size,
        vocab_size=model.vocab_size,
        bias=model.bias,
        lr=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        grad_clip=optimizer.grad_clip,
        seed=settings.seed,
        device=device_of(settings),
        dtype="bfloat16" if trainer.precision == "bf16-mixed" else "float32",
        grad_accum=1,
    )


def read_peers(texts: Sequence[str], settings: Settings, trusted: Sequence[str]) -> list[Peer]:
    """Read `module:function` or `name: module:function` for each peer.

    Raises:
        UserError: a module is not trusted, a name is not a function, or our own optimizer is not AdamW.
    """
    if texts and getattr(settings.optimizer.method, "func", None) is not AdamW:
        raise UserError(f"bench.peer={texts[0]} steps under AdamW; give optimizer=adamw, or leave out the peer")
    peers = []
    for text in texts:
        name, target = split_name(text)
        function = load_function("bench.peer", target, trusted)
        peers.append(Peer(target.rpartition(":")[2] if name == text else name, function, settings))
    return peers


def load_function(key: str, text: str, trusted: Sequence[str]) -> Callable[..., Any]:
    """Import `module:function`; `key` is the configuration key that errors name.

    Raises:
        UserError: the text has another form, its module is not trusted or it names no function.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise UserError(f"{key}={text} must be module:function, such as {OWN}.peers:plain")
    if not any(f"{module}.".startswith(f"{known}.") for known in (OWN, *trusted)):
        raise UserError(
            f"{key}={text} is outside the package {OWN}; if you trust it, add "
            f"trusted_targets=[{module.partition('.')[0]}] to the command line"
        )
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{key}={text} cannot be imported ({one_line(error)}); is its folder on PYTHONPATH?") from error
    if not callable(function) or (isinstance(function, type) and issubclass(function, nn.Module)):
        raise UserError(f"{key}={text} is not a function; give module:function")
    loaded: Callable[..., Any] = function
    return loaded
