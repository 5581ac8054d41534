"""Phases of a study as pure functions, driven by losses that are functions of system, rate and size."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from src.files import CONF
from src.settings.sections import read_section
from src.study.phases import (
    Cost,
    RunResult,
    RunSpec,
    check_lengths,
    choose_rate,
    compared_runs,
    count_steps,
    list_phase,
    next_runs,
    parse_folder,
    pilot_runs,
    search_length,
    search_runs,
    timing_run,
)
from src.study.plan import Budget, Rates, Seeds, StudyPlan, check_plan, plan_hash
from src.study.power import count_runs, planned_difference

Loss = Callable[[RunSpec], float]


def make_plan(**changes: Any) -> StudyPlan:
    """Return a plan of two systems and two sizes, with changes at dotted keys, `__` for the dot."""
    parts: dict[str, Any] = {
        "rates": Rates([1e-3, 2e-3], 2.0, 2, "first"),
        "seeds": Seeds([101, 102], [201], [1, 2], [1]),
        "budget": Budget(3200, None, None, {"large": 6400}, 0.5, ["flops", "seconds"]),
    }
    values: dict[str, Any] = {
        "common": [],
        "systems": {"vanilla": ["residual=vanilla"], "new": ["residual=x0_blend"]},
        "sizes": {"small": ["model.n_layer=2"], "large": ["model.n_layer=4"]},
        "baseline": "vanilla",
        "contrasts": [["new", "vanilla"]],
        "alpha": 0.05,
        "power": 0.8,
        "margin": 0.0,
        "sd": 0.01,
        "timing_steps": 5,
    }
    for key, value in changes.items():
        part, _, field = key.partition("__")
        if field:
            parts[part] = dataclasses.replace(parts[part], **{field: value})
        else:
            values[part] = value
    return StudyPlan(**{**parts, **values})


#: The new system has twice the FLOPs per token.
COSTS = {
    (size, system): Cost(100, 1000.0 * (1 + (system == "new")))
    for size in ("small", "large")
    for system in ("vanilla", "new")
}


def bowl(spec: RunSpec) -> float:
    """Return a loss with its minimum at the rate 4e-3, above every rate of the grid."""
    return 3 + math.log(spec.lr / 4e-3) ** 2 - 0.1 * (spec.system == "new")


def conduct(plan: StudyPlan, loss: Loss = bowl) -> tuple[list[tuple[str, int]], dict[str, RunResult]]:
    """Run a study to its end; return its batches and results. The new system runs at half the speed."""
    results: dict[str, RunResult] = {}
    batches = []
    while due := next_runs(plan, COSTS, results):
        batches.append((due[0], len(due[1])))
        for spec in due[1]:
            results[spec.folder] = RunResult(loss(spec), 1000.0 / (1 + (spec.system == "new")), 10.0)
    return batches, results


def test_a_study_runs_its_phases_in_order_and_extends_the_search_to_the_minimum() -> None:
    plan = make_plan()
    check_plan(plan)
    batches, results = conduct(plan)
    # Rates 1e-3 and 2e-3, then 4e-3 (the best, at the edge), then 8e-3, which is worse.
    assert batches == [
        ("timing", 4),
        ("pilot", 2),
        ("search", 4),
        ("search", 2),
        ("search", 2),
        ("confirmation", 6),
        ("ladder", 2),
    ]
    choice = choose_rate(plan, COSTS, results, "small", "new")
    assert (choice.lr, choice.is_edge, list(choice.curve)) == (4e-3, False, [1e-3, 2e-3, 4e-3, 8e-3])


def test_equal_flops_and_seconds_are_those_of_the_baseline_and_shared_runs_are_made_once() -> None:
    plan = make_plan()
    _, results = conduct(plan)
    steps = {
        (kind, system): count_steps(plan, COSTS, results, "small", system, kind)
        for kind in plan.budget.kinds
        for system in plan.systems
    }
    assert steps["tokens", "vanilla"] == steps["flops", "vanilla"] == steps["seconds", "vanilla"] == 32
    assert (steps["tokens", "new"], steps["flops", "new"], steps["seconds", "new"]) == (32, 16, 16)
    confirmed = list_phase(plan, COSTS, results, "confirmation")
    assert len(confirmed) == len({spec.folder for spec in confirmed}) == 6
    assert count_steps(plan, COSTS, results, "large", "new", "tokens") == 64


def test_steps_are_rounded_to_the_nearest_so_that_few_parameters_cost_no_step() -> None:
    plan = make_plan()
    costs = {**COSTS, ("small", "new"): Cost(100, 1000.5), ("large", "new"): Cost(100, 1400.0)}
    assert count_steps(plan, costs, {}, "small", "new", "flops") == 32
    assert count_steps(plan, costs, {}, "large", "new", "flops") == 46  # 64 / 1.4 = 45.7


def test_other_units_are_those_of_the_baselines_whole_steps_and_a_run_has_at_least_one() -> None:
    plan = make_plan(budget__tokens=3240)  # 32 steps of the baseline, which are 3200 tokens
    costs = {**COSTS, ("small", "new"): Cost(100, 10.0)}
    assert count_steps(plan, costs, {}, "small", "new", "flops") == 3200
    assert count_steps(make_plan(budget__tokens=1), COSTS, {}, "small", "new", "tokens") == 1


@pytest.mark.parametrize(("steps", "share", "length"), [(100, 0.29, 29), (10, 0.29, 2), (10, 0.01, 1), (7, 1.0, 7)])
def test_a_run_of_the_search_has_the_whole_steps_of_its_share(steps: int, share: float, length: int) -> None:
    assert search_length(make_plan(budget__search_share=share), steps) == length  # 100 * 0.29 is 28.999999999999996


def test_the_timing_and_the_pilot_run_at_the_middle_of_the_grid() -> None:
    plan = make_plan(rates__grid=[4e-3, 1e-3, 2e-3])
    assert (timing_run(plan, "small", "new").lr, pilot_runs(plan, COSTS, {})[0].lr) == (2e-3, 2e-3)


def test_a_rate_is_known_once_all_its_seeds_have_ended() -> None:
    plan = make_plan(seeds__search=[201, 202])
    specs = [spec for runs in search_runs(plan, COSTS, {}, "small", "new").values() for spec in runs]
    results = {spec.folder: RunResult(3.0 + spec.lr + (spec.seed == 202)) for spec in specs}
    choice = choose_rate(make_plan(seeds__search=[201, 202], rates__max_extensions=0), COSTS, results, "small", "new")
    assert choice.curve == {1e-3: pytest.approx(3.501), 2e-3: pytest.approx(3.502)}
    del results[specs[-1].folder]
    assert list(search_runs(plan, COSTS, results, "small", "new")) == [1e-3, 2e-3]  # not extended yet
    with pytest.raises(ValueError, match="the search of new at size small is not complete"):
        choose_rate(plan, COSTS, results, "small", "new")


def test_a_budget_in_seconds_uses_the_measured_speed() -> None:
    plan = make_plan(budget=Budget(None, None, 4.0, {}, 0.5, []))
    _, results = conduct(plan)
    assert count_steps(plan, COSTS, results, "small", "vanilla", "seconds") == 40
    assert count_steps(plan, COSTS, results, "small", "new", "seconds") == 20
    with pytest.raises(ValueError, match="no measured speed"):
        count_steps(plan, COSTS, {}, "small", "new", "seconds")


def test_seeds_of_the_search_are_never_reused() -> None:
    plan = make_plan()
    _, results = conduct(plan)
    specs = [spec for spec in map(parse_folder, results) if spec is not None]
    seeds = {phase: {spec.seed for spec in specs if spec.phase == phase} for phase in ("search", "confirmation")}
    assert seeds == {"search": {201}, "confirmation": {1, 2}}


def test_a_diverged_rate_is_never_chosen_and_the_search_leaves_it() -> None:
    plan = make_plan(rates__grid=[4e-3, 8e-3])
    _, results = conduct(plan, lambda spec: math.inf if spec.lr > 3e-3 else 3.0 + spec.lr)
    choice = choose_rate(plan, COSTS, results, "small", "new")
    assert (choice.lr, choice.curve[4e-3]) == (1e-3, math.inf)
    assert choice.is_edge  # two extensions are all that the plan has


def test_a_system_that_always_diverges_has_no_rate_and_no_confirmation() -> None:
    plan = make_plan()
    batches, results = conduct(plan, lambda spec: math.inf if spec.system == "new" else 3.0)
    assert choose_rate(plan, COSTS, results, "small", "new").lr is None
    assert compared_runs(plan, COSTS, results, "small", "new", "tokens") == []
    assert batches[-2:] == [("confirmation", 2), ("ladder", 1)]


def test_a_search_at_every_size_chooses_a_rate_for_each() -> None:
    plan = make_plan(rates__sizes="every")
    _, results = conduct(plan, lambda spec: abs(math.log(spec.lr / (2e-3 if spec.size == "small" else 1e-3))))
    chosen = [choose_rate(plan, COSTS, results, size, "new").lr for size in plan.sizes]
    assert chosen == [2e-3, 1e-3]


def test_a_rate_alone_starts_a_grid_of_three() -> None:
    _, results = conduct(make_plan(rates__grid=[4e-3]))
    tried = {spec.lr for spec in map(parse_folder, results) if spec is not None and spec.phase == "search"}
    assert tried == {2e-3, 4e-3, 8e-3}


def test_a_folder_names_its_run() -> None:
    spec = RunSpec("search", "small", "lns+resformer-b", 3e-05, 120, 7)
    assert spec.folder == "search/small/lns+resformer-b-lr3e-05-steps120-seed7"
    assert parse_folder(spec.folder) == spec
    assert parse_folder("report/small/x") is None


def test_a_budget_below_the_warm_up_is_rejected() -> None:
    costs = {key: dataclasses.replace(cost, warmup_steps=16) for key, cost in COSTS.items()}
    with pytest.raises(
        ValueError, match=r"runs of 16 steps in the search, which must exceed optimizer.warmup_steps=16"
    ):
        check_lengths(make_plan(), costs, {}, ["tokens"])
    check_lengths(make_plan(budget__search_share=1.0), costs, {}, ["tokens"])


def test_a_size_that_is_not_searched_needs_no_more_than_its_whole_runs_at_the_budget() -> None:
    # At the large size 64 steps by tokens; the search would have 32, equal FLOPs 32 for the new system.
    costs = {key: dataclasses.replace(cost, warmup_steps=40 if key[0] == "large" else 1) for key, cost in COSTS.items()}
    check_lengths(make_plan(), costs, {}, ["tokens", "flops"])
    with pytest.raises(ValueError, match=r"at size large runs of 32 steps in the search"):
        check_lengths(make_plan(rates__sizes="every"), costs, {}, ["tokens", "flops"])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"contrasts": [["newer", "vanilla"]]},
            "study.contrasts names newer, which is not a system",
        ),
        ({"contrasts": [["new"]]}, "must hold pairs of two systems"),
        ({"contrasts": [["new", "new"]]}, "must hold pairs of two systems"),
        ({"baseline": "base"}, "study.baseline=base is not a system"),
        ({"seeds__search": [1]}, r"study.seeds.search and study.seeds.confirmation or ladder share \[1\]"),
        ({"seeds__pilot": [2, 3]}, r"study.seeds.pilot and study.seeds.confirmation or ladder share \[2\]"),
        ({"seeds__pilot": [201, 3]}, r"study.seeds.pilot and study.seeds.search share \[201\]"),
        ({"seeds__ladder": [201]}, r"study.seeds.search and study.seeds.confirmation or ladder share \[201\]"),
        ({"seeds__pilot": [101, 101]}, r"study.seeds.pilot must hold distinct seeds, got \[101, 101\]"),
        ({"seeds__pilot": [101]}, "study.seeds.pilot must hold at least 2 seeds or none"),
        ({"seeds__search": []}, "study.seeds.search must hold at least 1"),
        ({"seeds__ladder": []}, "study.seeds.ladder must hold at least 1"),
        ({"seeds__confirmation": [1]}, "study.seeds.confirmation must hold at least 2"),
        ({"budget__flops": 1.0}, "must give one of tokens, flops and seconds, got tokens and flops"),
        ({"budget__by_size": {"huge": 1.0}}, "study.budget.by_size names huge, which is not a size"),
        ({"rates__grid": []}, "study.rates.grid must hold distinct rates"),
        ({"systems": {"vanilla": ["seed=3"], "new": []}}, "study.systems.vanilla: seed is set by the study"),
        ({"common": ["optimizer.lr=0.1"]}, "study.common: optimizer.lr is set by the study"),
        ({"common": ["model.n_layer"]}, "study.common: 'model.n_layer' must be an override"),
        ({"systems": {"vanilla": ["model.n_layer=3"], "new": []}}, "both set model.n_layer"),
        ({"sizes": {"a/b": []}}, "must consist of letters"),
    ],
)
def test_a_wrong_plan_is_rejected_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as error:
        check_plan(make_plan(**{**changes, **({} if "budget__by_size" in changes else {"budget__by_size": {}})}))
    assert "\n" not in str(error.value)


def test_the_hash_is_that_of_every_key() -> None:
    plan = make_plan()
    assert plan_hash(plan) == plan_hash(make_plan(systems=dict(reversed(plan.systems.items()))))
    assert plan_hash(make_plan()) != plan_hash(make_plan(margin=0.001))


def test_the_registered_study_has_the_stated_runs() -> None:
    """The numbers are those of conf/study/residual_small.yaml's comments."""
    section = OmegaConf.load(CONF / "study" / "residual_small.yaml")
    assert isinstance(section, DictConfig)
    plan = read_section("study", section, StudyPlan)
    check_plan(plan)
    counts = count_runs(plan)
    assert (counts["search"], counts["confirmation"], counts["pilot"], counts["ladder"]) == (28, 35, 0, 0)
    assert plan.budget.tokens == 6e6
    assert len(plan.contrasts) == 7
    assert {first for first, second in plan.contrasts if second == "vanilla"} == {*plan.systems} - {"vanilla"}
    assert planned_difference(plan, plan.sd, len(plan.contrasts)) == pytest.approx(0.0157, abs=5e-4)
