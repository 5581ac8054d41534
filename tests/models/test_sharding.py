"""FSDP2 on two gloo ranks: loss, gradients, steps and probes are those of one process; each rank holds its share.

One pair of processes computes everything that the tests below read, since starting it costs seconds.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed

from src.callbacks.guard import check_ranks_agree
from src.callbacks.sharded_checkpoint import read_sharded, write_sharded
from src.datamodules.tokenization.gpt2 import gpt2_tokenizer
from src.datamodules.tokenizer import N_VOCAB
from src.evaluation.generation import predict_next
from src.evaluation.perplexity import Scorer, disjoint_windows
from src.models.gpt import GPT
from src.models.optim.base import OptimizerConfig, apply_gradients, build_optimizer
from src.models.optim.muon import Muon, MuonKeys
from src.models.repeated_visits import copy_first_
from src.models.sharding import build_mesh, free_gathered, gather, is_sharded, local_part, shard_gpt
from src.models.stream_probe import probe_stream, summarize_parameters
from tests.ranks import RANKS, run_ranks
from tests.support import COMPOSITIONS, adamw, jitter, options, tiny_gpt, tokens

Found = dict[str, dict[str, float]]

#: Models beside the strategies: by name, the keywords of `tiny_gpt`.
MODELS: dict[str, dict[str, Any]] = {
    **{f"embedding={name}": {"embedding": name} for name in options("embedding")},
    "recurrence=mini": {"recurrence": "mini"},
    "norm=rmsnorm, biases, qk_norm": {"norm": "rmsnorm", "bias": True, "qk_norm": "layer"},
}
#: Strategies of every kind of residual connection; `pytest -m stress tests/models/test_sharding.py` compares all.
STRATEGIES = [
    *("vanilla", "attnres", "denseformer", "hyperconn", "keel", "laurel_lr", "mhc", "muddformer", "parallel"),
    *("resformer", "satformer", "x0_blend", "prores+lns+resformer"),
]
CHECKPOINTED = ["vanilla", "mhc", "resformer", "muddformer"]


def muon() -> OptimizerConfig:
    method = partial(Muon, betas=(0.9, 0.95), eps=1e-8, muon=MuonKeys(0.95, 5, 1.0))
    return OptimizerConfig(1e-2, 1e-3, 0, 0.1, 1.0, method)


def build(**keys: Any) -> GPT:
    return jitter(tiny_gpt(**keys), 0.1)


def shard(gpt: GPT, *, n_replica: int = 1, bf16: bool = False) -> GPT:
    shard_gpt(gpt, build_mesh("cpu", n_replica=n_replica, n_shard=RANKS // n_replica), bf16=bf16)
    return gpt


def backward(gpt: GPT, batches: list[int]) -> Tensor:
    """Return the mean loss of batches, and add its gradients."""
    total = torch.zeros(())
    for seed in batches:
        loss = gpt.loss(tokens(seed=seed), tokens(seed=seed + 10)) / len(batches)
        loss.backward()
        total += loss.detach()
    return total


def compare(make: Any, *, checkpointed: bool = False, n_replica: int = 1) -> dict[str, float]:
    """Compare a sharded model, two micro-steps on each rank, with one process that sees all four batches."""
    rank = distributed.get_rank()
    whole, gpt = make(), shard(make(), n_replica=n_replica)
    gpt.checkpoints_activations = checkpointed
    expected, loss = backward(whole, [0, 1, 2, 3]), backward(gpt, [2 * rank, 2 * rank + 1])
    distributed.all_reduce(loss)
    worst = 0.0
    for (name, a), (_, b) in zip(whole.named_parameters(), gpt.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            difference = (a.grad - gather(b.grad)).abs().max() / a.grad.abs().max().clamp_min(1e-6)
            worst = max(worst, float(difference))
    return {"loss": float(abs(expected - loss / RANKS)), "gradient": worst}


def compare_steps(config: OptimizerConfig, **keys: Any) -> dict[str, float]:
    """Compare the weights after three steps, the last of which meets a loss that is not finite."""
    rank, found = distributed.get_rank(), {}
    models = [build(**keys), shard(build(**keys))]
    before: list[list[Tensor]] = []
    for gpt, batches in zip(models, ([0, 1], [rank]), strict=True):
        optimizer = build_optimizer(gpt, config)
        for step in range(3):
            loss = backward(gpt, batches) if step < 2 else backward(gpt, batches) * float("nan")
            before.append([gather(p.detach()).clone() for p in gpt.parameters()])
            norm = apply_gradients(optimizer, list(gpt.parameters()), config.grad_clip, loss)
            assert type(norm) is Tensor
        after = [gather(p.detach()) for p in gpt.parameters()]
        assert all(map(torch.equal, after, before[-1]))
        before.append(after)
        state = sum(local_part(v).numel() for s in optimizer.state.values() for v in s.values() if v.dim())
        found["moments"] = state / max(1, sum(local_part(p).numel() for p in gpt.parameters()))
    found["weights"] = max(float((a - b).abs().max()) for a, b in zip(before[3], before[7], strict=True))
    found["moved"] = max(float((a - b).abs().max()) for a, b in zip(before[0], before[3], strict=True))
    return found


def compare_probes() -> dict[str, float]:
    """Compare what validation computes, and the parameters afterwards."""
    whole, gpt = build(residual="attnres"), shard(build(residual="attnres"))
    idx, targets = tokens(), tokens(seed=1)
    losses = (whole.token_losses(idx, targets) - gpt.token_losses(idx, targets)).abs().max()
    probes = [probe_stream(model, idx, targets) for model in (whole, gpt)]
    tables = [summarize_parameters(model) for model in (whole, gpt)]
    scores = [
        Scorer(model, gpt2_tokenizer(), 1, lambda: None).total(
            np.arange(19, dtype=np.uint16), disjoint_windows(19, 6, None)
        )
        for model in (whole, gpt)
    ]
    next_tokens = [predict_next(model, [[1, 2, 3], [4, 5, 6]], N_VOCAB) for model in (whole, gpt)]
    free_gathered(gpt)
    check_ranks_agree(1, gpt)
    left = sum(p.numel() for p in map(local_part, gpt.parameters()))
    return {
        "losses": float(losses),
        "mixing": float((probes[0].mixing_KJ - probes[1].mixing_KJ).abs().max()),
        "gradients": float((probes[0].gradient_rms_S - probes[1].gradient_rms_S).abs().max()),
        "tables": max(float((tables[0][k] - tables[1][k]).abs().max()) for k in tables[0]),
        "scores": abs(scores[0] - scores[1]) / scores[0],
        "next": float(next_tokens[0] == next_tokens[1]),
        "share": left / sum(p.numel() for p in whole.parameters()),
    }


def compare_bf16() -> dict[str, float]:
    """Compare the bf16 policy with autocast over float32 weights, in the root and in a unit."""
    whole, gpt = build(qk_norm="layer"), shard(build(qk_norm="layer"), bf16=True)
    rank = distributed.get_rank()
    with torch.autocast("cpu", torch.bfloat16):
        expected, loss = backward(whole, [0, 1]), backward(gpt, [rank])
    distributed.all_reduce(loss)
    a, b = (m.h[0].mlp.c_fc.weight.grad for m in (whole, gpt))
    return {
        "loss": float(abs(expected - loss / RANKS)),
        "gradient": float((a - gather(b)).abs().max() / a.abs().max()),
        "float32": float(all(p.dtype == p.grad.dtype == torch.float32 for p in gpt.parameters() if p.grad is not None)),
    }


def measure_share() -> dict[str, float]:
    """Return the bytes of parameters, gradients and moments on this rank over those of one process, and a block's."""
    found = []
    for gpt in (build(n_layer=4, n_embd=32), shard(build(n_layer=4, n_embd=32))):
        optimizer = build_optimizer(gpt, adamw())
        backward(gpt, [0])
        kept = [t for p in gpt.parameters() for t in (p.detach(), p.grad) if t is not None]
        optimizer.step()
        kept += [value for state in optimizer.state.values() for value in state.values()]
        found.append(sum(local_part(tensor).numel() for tensor in kept))
        assert is_sharded(gpt) == (len(found) == 2)
    return {"own": found[1], "whole": found[0], "block": sum(p.numel() for p in tiny_gpt(n_embd=32).h[0].parameters())}


def copy_across_ranks() -> dict[str, float]:
    gpt = shard(build(recurrence="mini"))
    (weight, *_) = gpt.copied_params()
    with torch.no_grad():
        copy_first_(weight)
    whole = gather(weight.detach())
    return {"equal": float((whole == whole[:1]).all()), "copies": len(whole)}


def save_from_own_folders() -> dict[str, float]:
    """Save with a folder of its own on each rank, as a launcher gives it; return whether rank 0's is whole."""
    gpt = shard(build())
    expected = {name: gather(p.detach()) for name, p in gpt.named_parameters()}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "step1.ckpt"
        write_sharded({"state_dict": {name: p.detach() for name, p in gpt.named_parameters()}}, target)
        found = read_sharded(target)["state_dict"] if distributed.get_rank() == 0 else expected
        written = len(list(Path(folder).iterdir()))
        distributed.barrier()
    return {
        "equal": float(all(torch.equal(found[name], expected[name]) for name in expected)),
        "folders": float(written),
    }


def compare_strategies(names: list[str]) -> Found:
    return {name: compare(partial(build, residual=name)) for name in names}


def compute_all() -> Found:
    return {
        **compare_strategies(STRATEGIES),
        **{name: compare(partial(build, **keys)) for name, keys in MODELS.items()},
        **{f"{name}, checkpointed": compare(partial(build, residual=name), checkpointed=True) for name in CHECKPOINTED},
        "replicated over nodes": compare(build, n_replica=RANKS),
        "adamw": compare_steps(adamw()),
        "muon": compare_steps(muon(), recurrence="mini"),
        "probes": compare_probes(),
        "bf16": compare_bf16(),
        "share": measure_share(),
        "copies": copy_across_ranks(),
        "saved": save_from_own_folders(),
    }


def find_odd(compared: Found) -> Found:
    """Return the comparisons that differ by more than rounding."""
    return {name: values for name, values in compared.items() if values["loss"] > 2e-6 or values["gradient"] > 1e-4}


@pytest.fixture(scope="module")
def found() -> Found:
    """Return what rank 0 of two computed."""
    computed: Found = run_ranks(compute_all)[0]
    return computed


def test_loss_and_gradients_are_those_of_one_process(found: Found) -> None:
    compared = {name: values for name, values in found.items() if set(values) == {"loss", "gradient"}}
    assert len(compared) == len(STRATEGIES) + len(MODELS) + len(CHECKPOINTED) + 1
    assert not find_odd(compared)


@pytest.mark.stress
def test_every_strategy_has_the_loss_and_gradients_of_one_process() -> None:
    names = [*options("residual"), *COMPOSITIONS]
    compared = run_ranks(partial(compare_strategies, names))[0]
    assert len(compared) == len(names)
    assert not find_odd(compared)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizers_take_the_steps_of_one_process(name: str, found: Found) -> None:
    assert found[name]["weights"] < 0.01 * found[name]["moved"]
    assert found[name]["moments"] == (2 if name == "adamw" else pytest.approx(1.1, abs=0.05))


def test_probes_and_samples_are_those_of_one_process(found: Found) -> None:
    probes = found["probes"]
    assert max(probes[key] for key in ("losses", "mixing", "gradients", "tables", "scores")) < 1e-5
    assert (probes["next"], probes["share"]) == (1, pytest.approx(0.5, abs=0.05))


def test_the_bf16_policy_rounds_as_autocast_does(found: Found) -> None:
    assert found["bf16"]["loss"] < 1e-3
    assert found["bf16"]["gradient"] < 0.05
    assert found["bf16"]["float32"] == 1


def test_a_rank_keeps_its_share_and_at_most_a_block_more(found: Found) -> None:
    share = found["share"]
    assert share["own"] <= share["whole"] / RANKS + share["block"]


def test_the_first_copy_is_copied_across_ranks(found: Found) -> None:
    assert found["copies"]["copies"] > 1
    assert found["copies"]["equal"] == 1


def test_a_checkpoint_is_whole_where_every_rank_has_a_folder_of_its_own(found: Found) -> None:
    assert found["saved"] == {"equal": 1, "folders": 1}


def test_a_scalar_parameter_is_rejected() -> None:
    gpt = tiny_gpt()
    gpt.residual.register_parameter("gate", torch.nn.Parameter(torch.ones(())))
    with pytest.raises(ValueError, match=r"residual\.gate of Vanilla is a scalar; use trainer\.strategy=ddp"):
        shard_gpt(gpt, None, bf16=False)  # type: ignore[arg-type]  # rejected before it is used
