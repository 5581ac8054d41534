"""Errors of a configuration: key, value, bound and way out, all at once, before anything is built."""

import math
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from src.datamodules.base import BatchSpec
from src.errors import UserError
from src.models.gpt import GPT
from src.settings.read import Settings, read_settings
from tests.support import ROOT, class_of, option, options, tokens


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=["name=x", *overrides])


def settled(*overrides: str) -> Settings:
    return read_settings(composed(*overrides))


def test_the_defaults_are_resolved() -> None:
    settings = settled("trainer=cpu", "trainer.max_steps=100")
    assert settings.optimizer.min_lr == pytest.approx(1e-4)
    assert settings.optimizer.warmup_steps == 4
    assert settings.trainer.devices == 1
    assert settings.config["optimizer"]["warmup_steps"] == 4
    assert settings.config["trainer"]["precision"] == "32-true"


@pytest.mark.parametrize("written", ["inf", ".inf"])  # Hydra's command line reads the first as a number, YAML the other
def test_a_limit_is_switched_off_as_messages_say(written: str) -> None:
    limits = ("optimizer.grad_clip", "guard.spike_nats", "guard.above_uniform_nats")
    settings = settled(*(f"{key}={written}" for key in limits))
    assert settings.optimizer.grad_clip == settings.guard.spike_nats == settings.guard.above_uniform_nats == math.inf
    with pytest.raises(UserError, match=r"optimizer\.lr must be"):
        settled(f"optimizer.lr={written}")


def test_the_reference_protocol_is_the_published_one() -> None:
    settings = settled("experiment=residual_reference", "evaluation=none", "trainer=cpu")
    model = settings.model
    assert (model.n_layer, model.n_head, model.n_embd, model.block_size, model.vocab_size) == (
        24,
        16,
        1024,
        1024,
        50304,
    )
    assert not model.bias
    assert settings.config["data"]["global_batch_size"] * 1024 == 524_288
    assert (settings.optimizer.lr, settings.optimizer.min_lr) == (3e-4, 3e-5)
    assert settings.optimizer.warmup_steps == round(0.04 * 13535)
    assert (settings.trainer.max_steps, settings.seed) == (13535, 42)
    other = settled("experiment=embedding_reference", "evaluation=none", "trainer=cpu")
    assert other.config["data"]["global_batch_size"] * 1024 == 589_824
    assert (other.trainer.max_steps, other.optimizer.warmup_steps) == (12030, round(0.04 * 12030))
    assert other.optimizer.lr == 3e-4


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model.n_embd=100", "model.n_head=3"],
            "model.n_embd must be a multiple of model.n_head, got 100 and 3",
        ),
        (["optimizer.lr=-1"], "optimizer.lr must be positive, got -1"),
        (["optimizer.lr=fast"], "optimizer.lr must be float, got 'fast'"),
        (
            ["optimizer.warmup_steps=50", "trainer.max_steps=20"],
            "warmup_steps must be less than trainer.max_steps=20",
        ),
        (["optimizer.betas=[0.9]"], "optimizer.betas must be tuple"),
        (["trainer.max_steps=0"], "trainer.max_steps must be int >= 1 and <= 1e+12, got 0"),
        (["trainer.max_steps=1.5"], "trainer.max_steps must be int >= 1 and <= 1e+12, got 1.5"),
        (["trainer.max_steps=true"], "trainer.max_steps must be int >= 1 and <= 1e+12, got True"),
        (["trainer.precision=fp8"], "trainer.precision must be auto, 32-true or bf16-mixed, got 'fp8'"),
        (["trainer.accelerator=gpu"], "torch sees no GPU here; use trainer=cpu"),
        (["trainer.strategy=zero"], "trainer.strategy must be auto, ddp or fsdp, got 'zero'"),
        (["trainer.devices=two"], "trainer.devices must be auto or int >= 1 and <= 1024, got 'two'"),
        (["trainer.compile=maybe"], "trainer.compile must be auto, true or false, got 'maybe'"),
        (["+trainer.max_step=5"], "trainer.max_step is not a key, did you mean trainer.max_steps?"),
        (
            ["+recurrence.mlp=shared"],
            "recurrence.mlp is not a key of this configuration but of recurrence=mini;",
        ),
        (["+optimiser=1"], "optimiser is not a key, did you mean optimizer?"),
        (
            ["+residual.n_streams=2", "residual=hyperconn"],
            "residual.n_streams is not a key, did you mean residual.n_stream?",
        ),
        (
            ["residual=hyperconn", "residual.n_stream=four"],
            "residual.n_stream must be int >= 2 and <= 1024, got 'four'; use residual=vanilla",
        ),
        (["~residual.n_stream", "residual=hyperconn"], "residual.n_stream is missing"),
        (
            ["residual._target_=src.residual.gone.Gone"],
            "residual._target_=src.residual.gone.Gone cannot be imported",
        ),
        (["seed=one"], "seed must be int >= 0, got 'one'"),
        (["evaluation.lm_eval.limit=0"], "evaluation.lm_eval.limit must be int >= 1 or null, got 0"),
        (
            ["embedding=value_embed", "embedding.layers=[1,two]"],
            "embedding.layers must be list[int], got [1, 'two']",
        ),
        (["model.positions=sinus"], "model.positions must be one of learned, rope, none, got sinus"),
        (["model.norm_placement=post"], "model.norm_placement must be one of pre, sandwich, output, got post"),
        (["model.vocab_size=null"], "model.vocab_size must be int, got None"),
    ],
)
def test_an_error_names_key_value_and_bound(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        settled(*overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_all_errors_are_raised_at_once() -> None:
    with pytest.raises(UserError) as error:
        settled("optimizer.lr=-1", "model.n_head=0", "trainer.max_steps=0", "+modle.x=1")
    for words in ("optimizer.lr", "model.n_head", "trainer.max_steps", "modle is not a key"):
        assert words in str(error.value)


@pytest.mark.parametrize("group", ["model", "data"])
def test_every_shipped_option_composes_and_is_valid(group: str) -> None:
    for name in set(options(group)) - {"from_checkpoint"}:  # it has the sizes of another model
        assert settled(f"{group}={name}", "trainer=cpu").name == "x"


@pytest.mark.parametrize("group", ["residual", "norm", "embedding", "recurrence", "mlp"])
def test_every_shipped_component_is_valid(group: str) -> None:
    config = composed("trainer=cpu")
    for name in options(group):
        config[group] = option(group, name)
        assert getattr(read_settings(config), group).func is class_of(option(group, name))


def test_every_shipped_experiment_is_valid() -> None:
    for name in options("experiment"):
        settled(f"experiment={name}", "evaluation=none", "trainer=cpu")


ROWS = {
    "embedding_untied": ("untied", "layernorm", "vanilla", "pre"),
    "embedding_bigram_hash": ("bigram_hash", "layernorm", "vanilla", "pre"),
    "embedding_value_embed": ("value_embed", "layernorm", "vanilla", "pre"),
    "embedding_value_embed_attention": ("value_embed_attention", "layernorm", "vanilla", "pre"),
    "norm_rmsnorm": ("tied", "rmsnorm", "vanilla", "pre"),
    "norm_rmsnorm_post": ("tied", "rmsnorm", "vanilla", "sandwich"),
    "norm_rmsnorm_parallel": ("tied", "rmsnorm", "parallel", "pre"),
}


def modules(settings: Settings) -> tuple[str, ...]:
    """What an experiment is made of: embedding, norm, residual, placement."""
    parts = (settings.config[key]["_target_"].split(".")[-2] for key in ("embedding", "norm", "residual"))
    return (*parts, settings.model.norm_placement)


@pytest.mark.parametrize("row", ROWS)
def test_a_row_of_the_sister_tasks_differs_from_their_protocol_in_its_parts_alone(row: str) -> None:
    settings = settled(f"experiment={row}", "evaluation=none", "trainer=cpu")
    protocol = settled("experiment=embedding_reference", "evaluation=none", "trainer=cpu")
    assert modules(settings) == ROWS[row]
    assert option("experiment", row).name == row.partition("_")[2]
    for key in ("optimizer", "trainer", "data", "seed"):
        assert settings.config[key] == protocol.config[key]
    sizes = {**settings.config["model"], "norm_placement": "pre"}
    assert sizes == protocol.config["model"]


@pytest.mark.parametrize("row", ROWS)
def test_a_row_scaled_down_keeps_its_parts_and_trains_on_a_cpu(row: str) -> None:
    settings = settled(f"experiment=[{row},scaled_down]", "trainer=cpu", "model.n_layer=3", "model.vocab_size=64")
    assert modules(settings) == ROWS[row]
    assert (settings.model.n_embd, settings.trainer.max_steps) == (128, 80)
    assert settings.config["data"]["_target_"].endswith("EmbeddedTextDataModule")
    assert settings.optimizer.warmup_steps == round(0.04 * settings.trainer.max_steps)
    gpt = GPT(
        settings.model,
        residual=settings.residual,
        norm=settings.norm,
        embedding=settings.embedding,
        seed=settings.seed,
    )
    gpt.loss(tokens(), tokens(seed=1)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in gpt.parameters())


def keys_of(node: Any) -> set[str]:
    return set(node) if isinstance(node, DictConfig) else set()


def test_the_public_keys_exist() -> None:
    config = composed()
    for section, keys in {
        "model": {"n_layer", "n_head", "n_embd", "block_size", "vocab_size"},
        "data": {"path", "val_tokens", "micro_batch_size", "global_batch_size"},
        "optimizer": {"lr", "min_lr", "warmup_steps", "weight_decay", "betas", "grad_clip"},
        "trainer": {
            *("max_steps", "devices", "accelerator", "strategy", "precision", "compile"),
            *("log_every_steps", "val_every_steps", "checkpoint_every_steps"),
        },
    }.items():
        assert keys <= keys_of(config[section]), section
    assert {"name", "seed", "resume"} <= keys_of(config)


def test_data_may_be_a_list_or_a_mixture() -> None:
    spec = BatchSpec(16, 512, 1, 5)
    listed = settled("trainer=cpu", "data=fineweb10b", "data.path=[a,b]", "data.cache_gib=1").data(spec)
    assert listed.sources() == {"the data": (["a", "b"], 1.0)}
    mixed = settled("trainer=cpu", "data.path=[{path:a,weight:3},{path:[b,c],weight:0.5}]").data(spec)
    assert mixed.sources() == {"a": (["a"], 3.0), "['b', 'c']": (["b", "c"], 0.5)}


def test_a_key_that_changes_nothing_is_absent_and_a_configuration_without_it_reads_alike() -> None:
    stored = settled("data=fineweb10b").config
    assert "document_attention" not in stored["data"]
    assert read_settings(DictConfig(stored)).config == stored
    assert settled("data=fineweb10b", "data.document_attention=true").config["data"]["document_attention"] is True
