"""Compositions of strategies: their equations, what does not compose, and runs from configuration to resume.

Covers `src/residual/families/branch.py` too; the contract tests run over `COMPOSITIONS`.
"""

import signal
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from src.models.formats.pretrained import from_pretrained
from src.models.gpt import GPT
from src.residual.families.branch import BranchStrategy
from tests.oracle import compare_flow, compare_model, groups_by_name
from tests.residual.attention import attend
from tests.residual.plain import Sublayers, jittered, stream_spec
from tests.runs import SMALL, begin, computed, kill_after, make_shards, result, run, same_weights
from tests.support import class_of, component, jitter, option, options, tiny_gpt, tokens


def test_lns_and_resformer_equal_their_two_equations() -> None:
    """The scaled norm of LNS on every input, the halves of ResFormer on every later value."""

    def oracle(gpt: GPT, idx: Tensor) -> Tensor:
        norms, x, kept = gpt.residual.parts["lns"].norms, gpt.embedding(idx), []

        def values(v: Tensor) -> Tensor:
            kept.append(v)
            return v if len(kept) == 1 else (kept[0] + v) / 2

        for i, block in enumerate(gpt.h):
            x = x + attend(block.attn, norms[2 * i](x) / (i + 1) ** 0.5, values)
            x = x + block.mlp(norms[2 * i + 1](x) / (i + 1) ** 0.5)
        return gpt.ln_f(x)

    compare_model(jitter(tiny_gpt("lns+resformer")).double(), oracle)


def test_prores_and_attention_residuals_equal_their_two_equations() -> None:
    """A site's output enters the attention over depth with the weight of its warm-up."""
    spec = stream_spec()
    strategy = jittered(component("residual", "prores+attnres")(spec))
    strategy.on_step(60, 1000)
    alpha, attnres = [60 / 80, 60 / 160, 60 / 240], strategy.parts["attnres"]

    def read(sources: list[Tensor], query: int) -> Tensor:
        v = torch.stack(sources)
        key = F.rms_norm(v, (6,), attnres.key_gain_QD[query], attnres.eps)
        weight = (key @ attnres.query_QD[query]).softmax(0)
        return (weight[..., None] * v).sum(0)

    def oracle(x: Tensor, branches: Sublayers) -> Tensor:
        sources = [x]
        for k, branch in enumerate(branches):
            u = x if k == 0 else read(sources, k - 1)
            sources.append(alpha[k // 2] * branch(u))
        return read(sources, 5)

    compare_flow(strategy, spec, oracle)


STREAMS = [name for name in options("residual") if not issubclass(class_of(option("residual", name)), BranchStrategy)]


@pytest.mark.parametrize("name", STREAMS)
def test_every_stream_takes_a_warm_up_a_value_residual_and_a_scaled_start(name: str) -> None:
    gpt = tiny_gpt(f"prores+satformer+stream_scaling+{name}", n_layer=4)
    gpt.follow(50, 100)
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert [key for key, p in gpt.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", STREAMS)
def test_lns_goes_on_every_stream_that_leaves_the_norms_to_the_trunk(name: str) -> None:
    spec = stream_spec(4, 16)
    stream = component("residual", name)(spec)
    if any(stream.owns_norm(site) for site in stream.visits(spec.sites)):
        with pytest.raises(ValueError, match=rf"residual: lns and {name} both place the input norm of \w+ \d, so"):
            component("residual", f"lns+{name}")(spec)
    else:
        assert component("residual", f"lns+{name}")(spec).owns_norm(spec.sites[0])


def test_the_order_of_branch_strategies_that_scale_does_not_matter() -> None:
    one, other = (jitter(tiny_gpt(name)).double() for name in ("layerscale+lns", "lns+layerscale"))
    other.load_state_dict(one.state_dict())
    assert torch.allclose(one(tokens()), other(tokens()), rtol=0, atol=1e-12)


def test_each_part_keeps_its_optimizer_groups() -> None:
    groups = groups_by_name(tiny_gpt("rezero+stream_scaling+mhc", strategy={}))
    alone = {
        **{f"parts.rezero.{k}": v for k, v in _own_groups("rezero").items()},
        **{f"parts.mhc.{k}": v for k, v in _own_groups("mhc").items()},
        **{f"parts.stream_scaling.{k}": v for k, v in _own_groups("stream_scaling").items()},
    }
    assert {k.removeprefix("residual."): v for k, v in groups.items() if k.startswith("residual.")} == alone


def _own_groups(name: str) -> dict[str, tuple[float, float]]:
    groups = groups_by_name(tiny_gpt(name))
    return {k.removeprefix("residual."): v for k, v in groups.items() if k.startswith("residual.")}


@pytest.mark.parametrize(
    ("name", "claim"),
    [("prores+hyperconn", "identity"), ("layerscale+denseformer", "near identity"), ("lns+resformer", "other")],
)
def test_a_composition_is_at_init_what_its_parts_are(name: str, claim: str) -> None:
    assert tiny_gpt(name).residual.init_equivalent == claim


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("attnres+mhc", "attnres and mhc both define the stream, so they do not compose; leave one of them out"),
        ("lns+mixln", "lns and mixln both place the input norm of attn 0, so they do not compose"),
        ("resformer+satformer", "resformer and satformer both change the values of attention"),
    ],
)
def test_parts_that_touch_the_same_thing_are_an_error(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"residual: {sentence}"):
        tiny_gpt(name)


def test_own_mixing_weights_are_those_of_the_stream_where_no_part_stands_between() -> None:
    x0, outputs = torch.randn(2, 4, 16), tuple(torch.randn(6, 2, 4, 16))
    for name, has_own in (("resformer+attnres", True), ("prores+attnres", False)):
        gpt = tiny_gpt(name)
        found = gpt.residual.mixing(gpt.sites, x0, outputs)
        assert (found is not None) == has_own
        if found is not None:
            assert torch.equal(found, gpt.residual.stream.mixing(gpt.sites, x0, outputs))


def test_a_composed_run_stores_its_parts_resumes_and_loads_as_an_export(tmp_path: Path) -> None:
    make_shards(tmp_path / "shards")
    keys = [*SMALL, "residual=[prores,resformer]", "residual.base=hyperconn", "data.path=shards", "model.n_layer=3"]
    whole = run(*keys, "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert result(tmp_path / "whole")["name"] == "prores+resformer+hyperconn"
    stored = OmegaConf.load(tmp_path / "whole/config.yaml").residual
    assert list(stored.parts) == ["prores", "resformer", "hyperconn"]
    assert stored.parts.hyperconn.n_stream == 4

    assert kill_after(6, tmp_path / "cut", begin(*keys, "hydra.run.dir=cut", cwd=tmp_path), signal.SIGKILL) < 0
    resumed = run("resume=cut", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert result(tmp_path / "cut")["resumed_at"]
    assert computed(tmp_path / "cut") == computed(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")

    keys = ["run=whole", "output=hub", "trainer=cpu", "evaluation=none", "hydra.run.dir=e"]
    exported = run("task=export", *keys, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    weights = torch.load(tmp_path / "whole/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    loaded = from_pretrained(tmp_path / "hub").state_dict()
    assert weights.keys() == {f"gpt.{key}" for key in loaded}
    assert all(torch.equal(loaded[key.removeprefix("gpt.")], value) for key, value in weights.items())
