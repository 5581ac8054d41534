"""The cost table: what is counted, what is timed, what is said."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from src.bench.candidates import Contestant, Entrant, of_text, refuse_mixture, refuse_twice
from src.bench.device_peak import Ceiling, matmul_speed, published_peak
from src.bench.stopwatch import Lap, Stopwatch, no_lap
from src.bench.strategy_table import idea
from src.bench.tables import parts_table, speed_table
from src.bench.timing import Timing, step_bytes
from src.errors import UserError
from src.launch.arguments import CONF
from src.launch.job import Job
from src.tasks.bench import BenchKeys
from tests.runs import SMALL, error_lines, run
from tests.support import options


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("bench")
    done = run(
        *("task=bench", *SMALL, "bench.residual=[rezero,denseformer,dual_path]", "bench.rounds=2"),
        'bench.configurations=["twice: norm=rmsnorm residual=rezero model.block_size=16","recurrence=mini"]',
        *("bench.at_once=3", "bench.peer=benchmarks.peers:plain", "hydra.run.dir=b"),
        cwd=cwd,
    )
    assert done.returncode == 0, done.stderr
    return cwd / "b"


def test_counts_are_those_at_gpt2_medium(folder: Path) -> None:
    costs = json.loads((folder / "bench.json").read_text())["costs"]
    assert costs["vanilla"]["n_params_model"] == 353_551_360 + 1024 * 1024
    assert [cost["init_equivalent"] for cost in costs.values()] == ["vanilla", "identity", "vanilla", "other"]
    assert {name: cost["n_params"] for name, cost in costs.items()} == {
        "vanilla": 0,
        "rezero": 48,
        "denseformer": 324,
        "dual_path": 48 * 1024,  # the norms that the trunk then does not have
    }
    more = costs["dual_path"]["flops_per_token"] - costs["vanilla"]["flops_per_token"]
    assert more == 6 * 24 * 8 * 1024**2
    hidden = 4 * 8 * 1024 * 1024
    assert (costs["denseformer"]["kept_bytes"] - costs["vanilla"]["kept_bytes"]) / hidden < 26


NAMES = ["vanilla", "rezero", "denseformer", "dual_path", "twice", "recurrence=mini", "plain"]


def test_every_configuration_is_timed_beside_the_baseline(folder: Path) -> None:
    timings = json.loads((folder / "bench.json").read_text())["timings"]
    assert list(timings) == NAMES
    for timing in timings.values():
        assert len(timing["seconds"]) == len(timing["ratios"]) == 2
        assert min(timing["seconds"]) > 0
        assert timing["step_bytes"] > 4 * timing["n_params"]  # the gradients at least
        assert timing["state_bytes"] >= 12 * timing["n_params"]
    for name in NAMES[:-1]:
        timing = timings[name]
        assert list(timing["parts"]) == ["forward", "loss", "backward", "optimizer"]
        assert sum(timing["parts"].values()) <= 1.5 * max(timing["seconds"])


def test_what_surrounds_a_step_is_told_too(folder: Path) -> None:
    stated = json.loads((folder / "bench.json").read_text())
    assert list(stated["data_seconds"]) == NAMES[:-1]
    assert stated["data_seconds"]["vanilla"] == stated["data_seconds"]["rezero"] > 0
    assert abs(stated["loop_seconds"]) < 0.1
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "multirun").exists()  # nothing of the random tokens stays


def test_a_configuration_is_all_that_its_overrides_say(folder: Path) -> None:
    timings = json.loads((folder / "bench.json").read_text())["timings"]
    assert [timings[name]["tokens"] for name in ("vanilla", "twice")] == [64, 32]
    # two LayerNorm weights a layer and one at the end, as RMSNorm; a scalar a sublayer; sixteen positions fewer
    assert timings["twice"]["n_params"] - timings["vanilla"]["n_params"] == 4 - 16 * 32
    # both layers are visited again from the middle of a run on: that is what is timed
    assert timings["recurrence=mini"]["flops_per_token"] > 1.2 * timings["vanilla"]["flops_per_token"]


def test_the_table_has_a_line_for_each(folder: Path) -> None:
    text = (folder / "table.md").read_text()
    strategies, speeds, parts = (b.splitlines() for b in text.split("\n\n") if b.startswith("|"))
    assert [line.split(" | ")[0] for line in strategies[2:]] == [f"| {name}" for name in NAMES[:4]]
    for table in (speeds, parts):
        assert [line.split(" | ")[0] for line in table[2:]] == [f"| {name}" for name in NAMES]


def test_quartiles_are_of_the_rounds_ratios() -> None:
    rest = (1.0, 8, 6, 4, 2, 1, {})
    assert Timing([1.0] * 5, [1.0, 1.1, 1.2, 1.3, 9.0], *rest).quartiles() == (1.1, 1.2, 1.3)
    assert Timing([1.0], [1.5], *rest).quartiles() == (1.5, 1.5, 1.5)


def test_throughput_is_held_against_peak_and_product() -> None:
    timing = Timing(
        [2.0, 4.0, 3.0],
        [1.0] * 3,
        60.0,
        tokens=300,
        flops_per_token=5_000,
        n_params=7,
        state_bytes=2**20,
        step_bytes=2**31,
        parts={"forward": 1.5},
    )
    ceiling = Ceiling(peak=1e6, product=625e3, product_words="a product's speed", copy=1e9)
    line = speed_table({"vanilla": timing}, {"vanilla": ceiling}, "at a size").splitlines()[-1]
    assert line.split(" | ")[3:] == [
        *("1", "3000.0", "0.33", "100", "50.0 %", "80.0 %", "1 MiB + 2.00 GiB", "60.0 s |"),
    ]
    line = parts_table({"vanilla": timing}, {"vanilla": None}, 0.001).splitlines()[-1]
    assert line == "| vanilla | - | 1500.00 | - | - | - | 1.00 |"


def test_parts_of_one_name_add_up_and_make_the_step() -> None:
    watch = Stopwatch("cpu")
    watch.start()
    for part in ("forward", "backward", "forward"):
        torch.randn(300, 300) @ torch.randn(300, 300)
        watch(part)
    seconds, parts = watch.stop()
    assert list(parts) == ["forward", "backward"]
    assert 0 < parts["backward"] < parts["forward"] + parts["backward"] <= seconds + 1e-9


def test_a_steps_memory_is_what_its_tensors_take() -> None:
    def step(x: Tensor, y: Tensor, lap: Lap = no_lap) -> Tensor:
        first = torch.ones(1000, 1000)
        del first
        second = torch.ones(2000, 500)
        return second.add_(1) + torch.ones(1000, 500).sum()

    entrant = Entrant(step, 1, 1, 2, 0, 0, list)
    peak = step_bytes(entrant, torch.zeros(1, 2, dtype=torch.long), "cpu")
    assert 8_000_000 <= peak < 8_001_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("attnres", "must be overrides such as"),
        ("a: residual=attnres norm", "must be overrides such as"),
        ("trusted_targets=[mine]", "cannot say trusted_targets=[mine]"),
        ("norm=rmsnorm +bench.rounds=3", "cannot say +bench.rounds=3"),
    ],
)
def test_a_configuration_that_says_no_model_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        of_text(Job(Path(), OmegaConf.create(), resumes=False), text)


def test_a_chip_is_known_by_its_name() -> None:
    assert published_peak("NVIDIA H200") == 989e12
    assert published_peak("NVIDIA GB200 Superchip") == 2500e12
    assert published_peak("Some Chip") is None
    assert matmul_speed("cpu", torch.float32) > 1e9


@pytest.mark.parametrize("name", options("residual"))
def test_every_strategy_has_a_summary_in_its_yaml(name: str) -> None:
    assert len(idea(name)) > 20


def test_all_are_all_the_shipped_ones_but_the_baseline() -> None:
    names = BenchKeys(None, [], "vanilla", [], 1, 1, None, None).names()
    assert {*names, "vanilla"} == {path.stem for path in (CONF / "residual").glob("*.yaml")}
    assert "vanilla" not in names
    assert BenchKeys("all", ["a=b"], "vanilla", [], 1, 1, None, None).names() == names
    assert BenchKeys(None, ["a=b"], "vanilla", [], 1, 1, None, None).names() == []


def test_a_strategy_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"bench\.residual=atnres is no strategy, did you mean attnres\?"):
        BenchKeys(["atnres"], [], "vanilla", [], 1, 1, None, None).names()


def test_a_configuration_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    done = run("task=bench", *SMALL, 'bench.configurations=["residual=atnres"]', cwd=tmp_path)
    assert done.returncode == 2
    assert len(error_lines(done)) == 1
    assert "'residual=atnres': residual=atnres is no option, did you mean attnres?" in done.stderr


def test_one_process_has_one_number_of_threads() -> None:
    one, two = (
        Contestant(name, (), SimpleNamespace(trainer=SimpleNamespace(accelerator="cpu", threads=n)), None)
        for name, n in (("a", 1), ("b", 2))
    )
    with pytest.raises(UserError, match=r"'a' has trainer\.threads=1 and 'b' has 2"):
        refuse_mixture([one, two])
    with pytest.raises(UserError, match="'a' is there twice"):
        refuse_twice(["b", "a", "a"])


def test_the_readme_has_a_line_for_every_strategy() -> None:
    lines = (CONF.parent / "README.md").read_text().splitlines()
    named = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert set(options("residual")) <= named
