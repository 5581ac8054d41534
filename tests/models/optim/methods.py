"""The shipped optimizers, for tests."""

import importlib
from functools import partial
from typing import Any

import torch

from src.models.gpt import GPT
from src.models.optim.base import OptimizerConfig, apply_gradients
from src.models.optim.muon import Muon, MuonKeys
from tests.support import ROOT, adamw, tokens

SHIPPED = sorted(p.stem for p in (ROOT / "conf/optimizer").glob("*.yaml") if p.stem != "torch")


def torch_class(name: str, **keys: Any) -> OptimizerConfig:
    """A class of `torch.optim` with its arguments."""
    config = adamw(1e-2)
    method = partial(getattr(importlib.import_module("torch.optim"), name), **keys)
    return OptimizerConfig(config.lr, config.min_lr, 0, config.weight_decay, config.grad_clip, method)


def muon(lr: float = 1e-2, **keys: Any) -> OptimizerConfig:
    """Muon beside the reference protocol's AdamW."""
    config = adamw(lr)
    settings = MuonKeys(**{"momentum": 0.95, "ns_steps": 5, "lr_scale": 1.0, **keys})
    method = partial(Muon, betas=(0.9, 0.95), eps=1e-8, muon=settings)
    return OptimizerConfig(config.lr, config.min_lr, 0, config.weight_decay, config.grad_clip, method)


CONFIGS = {
    "adamw": adamw(1e-2),
    "muon": muon(),
    "SGD": torch_class("SGD"),
    "SGD momentum": torch_class("SGD", momentum=0.9),
    "SGD fused": torch_class("SGD", momentum=0.9, fused=True),
    "RMSprop": torch_class("RMSprop"),
    "Adafactor": torch_class("Adafactor"),
}


def train(gpt: GPT, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> list[float]:
    """Take steps on random tokens; returns their losses."""
    losses = []
    for step in range(steps):
        loss = gpt.loss(tokens(seed=seed + step), tokens(seed=seed + step + 9))
        loss.backward()
        apply_gradients(optimizer, list(gpt.parameters()), 1.0, loss)
        losses.append(loss.item())
    return losses
