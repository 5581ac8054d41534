"""Verdict and page of a study whose runs have known losses.

Covers `page.py`, `words.py`, `figures.py`, `scaling.py`, `comparison_sections.py` and `scaling_sections.py`.
"""

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src.reporting.curves import COLORS
from src.reporting.tables import format_cell
from src.study.figures import draw_contrasts, draw_losses, draw_rates, draw_scaling
from src.study.page import write_verdict
from src.study.phases import Choice, Cost, RunSpec, next_runs
from src.study.plan import Budget, Rates, Seeds, StudyPlan
from src.study.record import StudyRecord, freeze, read_results
from src.study.verdict import build_verdict
from tests.reporting.folders import STEP_TOKENS, write_run

SIZES = {"small": 100_000, "middle": 400_000, "large": 1_600_000}
#: The system `better` has the loss that the baseline has at twice the parameters; `same` differs by noise only.
FACTORS = {"vanilla": 1.0, "better": 2.0, "same": 1.0}
PLAN = StudyPlan(
    common=[],
    systems={name: [f"residual={name}"] for name in FACTORS},
    sizes={name: [f"model.n_embd={name}"] for name in SIZES},
    baseline="vanilla",
    rates=Rates([1e-3, 2e-3, 4e-3], 2.0, 1, "first"),
    seeds=Seeds([101, 102], [201], [1, 2, 3, 4], [1, 2]),
    budget=Budget(8 * STEP_TOKENS, None, None, {}, 0.5, ["seconds"]),
    contrasts=[["better", "vanilla"], ["same", "vanilla"]],
    alpha=0.05,
    power=0.8,
    margin=0.01,
    sd=0.01,
    timing_steps=4,
)
#: One size and one budget.
SMALL = dataclasses.replace(
    PLAN, sizes={"small": PLAN.sizes["small"]}, budget=dataclasses.replace(PLAN.budget, equal=[])
)
COSTS = {(size, system): Cost(STEP_TOKENS, 6.0 * n) for size, n in SIZES.items() for system in FACTORS}


def loss_of(spec: RunSpec) -> float:
    """Return 2 + (N / 4e5)^-0.5 at the best rate, 2e-3, with seed effects and an error of about 0.002."""
    noise = 0.002 * math.sin(7.0 * spec.seed + 3 * len(spec.system) + 11 * len(spec.size))
    seed = 0.05 * math.cos(spec.seed)
    size = FACTORS[spec.system] * SIZES[spec.size] / 4e5
    return 2 + size**-0.5 + 0.3 * math.log(spec.lr / 2e-3) ** 2 + noise + seed


def write_study(
    folder: Path, loss: Callable[[RunSpec], float] = loss_of, stop: str = "", plan: StudyPlan = PLAN
) -> StudyRecord:
    """Write the folder of a study up to a phase; `same` runs at half the speed, a loss of inf is a diverged run."""
    costs = {key: cost for key, cost in COSTS.items() if key[0] in plan.sizes}
    record = StudyRecord("made", plan, costs)
    while due := next_runs(plan, costs, read_results(folder)):
        if due[0] == "confirmation" and record.frozen is None:
            record.frozen = {**freeze(record, read_results(folder)), "time": "2026-01-01T00:00:00+00:00"}
        if due[0] == stop:
            break
        for spec in due[1]:
            write_spec(folder, record, spec, loss(spec))
    record.write(folder)
    return record


def write_spec(folder: Path, record: StudyRecord, spec: RunSpec, loss: float) -> None:
    depth, width = {"small": (2, 32), "middle": (4, 32), "large": (4, 64)}[spec.size]
    config: dict[str, Any] = {
        "study": {"plan": record.hash},
        "model": {"n_layer": depth, "n_embd": width},
        "optimizer": {"lr": spec.lr, "min_lr": spec.lr / 10},
        "trainer": {"max_steps": spec.steps},
    }
    diverged = {"status": "diverged", "reason": "a planted spike"} if math.isinf(loss) else {}
    write_run(
        folder / spec.folder,
        name=spec.system,
        seed=spec.seed,
        losses=[5.0] * (spec.steps // 2 - 1) + [5.0 if diverged else loss],
        tokens_per_s=1000.0 / (1 + (spec.system == "same")),
        flops_per_token=6 * SIZES[spec.size],
        config=config,
        n_params=SIZES[spec.size],
        **diverged,
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder


def test_contrasts_find_the_planted_difference_and_nothing_else(study: Path) -> None:
    main = build_verdict(study).main
    assert main is not None
    assert main.contrasts["verdict"].tolist() == ["better", "equal"]
    assert main.contrasts["difference"].iloc[0] == pytest.approx((0.5**-0.5) - (0.25**-0.5), abs=0.005)


def test_the_chosen_rate_is_the_interior_minimum(study: Path) -> None:
    choices = build_verdict(study).choices
    assert {choice.lr for choice in choices.values()} == {2e-3}
    assert not any(choice.is_edge for choice in choices.values())


def test_the_compute_multiplier_is_the_planted_one(study: Path) -> None:
    """The baseline needs twice the parameters, at equal tokens twice the FLOPs; `same` has half the speed."""
    scaling = build_verdict(study).scaling
    assert scaling is not None
    rows = scaling.multipliers.set_index(["system", "size"])
    assert rows.loc[("better", "middle"), "compute"] == pytest.approx(2.0, rel=0.05)
    assert rows.loc[("better", "middle"), "with throughput"] == pytest.approx(2.0, rel=0.05)
    assert rows.loc[("same", "middle"), "compute"] == pytest.approx(1.0, rel=0.05)
    assert rows.loc[("same", "middle"), "with throughput"] == pytest.approx(0.5, rel=0.05)
    assert rows.loc[("better", "large"), "beyond"] == "yes"
    assert {rows.loc[("vanilla", size), "beyond"] for size in SIZES} == {"no"}  # its own losses, the ends included
    assert scaling.fits["vanilla"].exponent[0] == pytest.approx(0.5, rel=0.1)


def test_a_ladder_of_one_seed_has_no_intervals(tmp_path: Path) -> None:
    seeds = dataclasses.replace(PLAN.seeds, ladder=[1])
    budget = dataclasses.replace(PLAN.budget, equal=[])
    write_study(tmp_path / "s", plan=dataclasses.replace(PLAN, seeds=seeds, budget=budget))
    words = " ".join(write_verdict(tmp_path / "s", tmp_path)[1])
    assert re.search(r"times the compute of better \(an extrapolation\)\. ", words)
    assert re.search(r"times the compute of same( \(an extrapolation\))?\. ", words)
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"\| vanilla \| [\d.]+ \[-\] \| [\d.]+ \[-\] \| [\d.]+ \[-\] \|", text)
    assert re.search(r"\| better \| middle \| [\d.]+x \| - \| no \|", text)


def test_a_size_with_a_diverged_run_is_left_out_of_the_ladder_and_named(tmp_path: Path) -> None:
    cell = ("ladder", "large", "better", 1)
    write_study(
        tmp_path / "s",
        lambda spec: math.inf if (spec.phase, spec.size, spec.system, spec.seed) == cell else loss_of(spec),
    )
    scaling = build_verdict(tmp_path / "s").scaling
    assert scaling is not None
    assert set(zip(scaling.points["system"], scaling.points["size"], strict=True)) == {
        (system, size) for system in FACTORS for size in SIZES
    } - {("better", "large")}
    assert scaling.fits.keys() == {"vanilla", "same"}
    write_verdict(tmp_path / "s", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Left out, since a run of it diverged: better at size large." in text


def test_a_study_of_one_size_has_no_section_on_sizes(small: Path, tmp_path: Path) -> None:
    write_verdict(small, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Study made: 3 systems, 1 size\n")
    assert "Over sizes" not in text
    assert (tmp_path / "report.html").read_text().count("<svg") == 3  # contrasts, search, runs


def test_a_slow_system_has_fewer_steps_at_equal_seconds(study: Path) -> None:
    comparison = build_verdict(study).comparisons["seconds"]
    steps = {system: runs[0].result["steps"] for system, runs in comparison.runs.items()}
    assert steps == {"vanilla": 8, "better": 8, "same": 4}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a study of one size and one budget."""
    folder = tmp_path_factory.mktemp("small")
    write_study(folder, plan=SMALL)
    return folder


def test_seconds_are_stated_only_where_the_plan_compares_by_them(study: Path, small: Path, tmp_path: Path) -> None:
    write_verdict(small, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "## At equal tokens\n" in text
    assert "| system | steps | tokens | FLOPs | seeds | loss at equal tokens | difference |" in text
    write_verdict(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| system | steps | tokens | FLOPs | seconds | seeds | loss at equal seconds | difference |" in text


def test_other_machines_speeds_and_code_are_warned_of(small: Path, tmp_path: Path) -> None:
    changed = tmp_path / "s"
    shutil.copytree(small, changed)
    for seed, speed in ((1, 600.0), (2, 1000.0)):
        path = changed / f"confirmation/small/vanilla-lr0.002-steps8-seed{seed}/result.json"
        other = {"tokens_per_s": speed, "machine": "another", "git": "e" * 40}
        path.write_text(json.dumps({**json.loads(path.read_text()), **other}))
    write_verdict(changed, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "these columns are not comparable: speed: machine (better), speed: machine (same), speed: machine (" in text
    assert "Not run by the same code and libraries: code (better), code (same), code (vanilla)." in text
    assert "costs and times are not comparable: vanilla (600 to 1,000 tokens/s)." in text
    assert "unfair" not in text


def test_runs_that_took_other_seconds_than_the_timing_promised_are_warned_of(study: Path, tmp_path: Path) -> None:
    words = "The runs at equal seconds did not take equal seconds (vanilla 1.02 s, same 0.512 s)"
    (tmp_path / "page").mkdir()
    assert "equal seconds did not" not in write_verdict(study, tmp_path / "page")[0].with_suffix(".md").read_text()
    slow = tmp_path / "slow"
    shutil.copytree(study, slow)
    for path in (slow / "confirmation").glob("*/same-*-steps4-*/result.json"):
        path.write_text(path.read_text().replace('"tokens_per_s": 500.0', '"tokens_per_s": 1000.0'))
    assert words in write_verdict(slow, tmp_path / "page")[0].with_suffix(".md").read_text()


def test_rates_of_the_search_are_fair_and_anything_else_is_flagged(study: Path, tmp_path: Path) -> None:
    assert build_verdict(study).unexplained == []
    plan_rate = lambda spec: loss_of(spec) + (spec.system == "better") * 0.5 * (spec.lr == 2e-3)  # noqa: E731
    write_study(tmp_path / "s", plan_rate)
    verdict = build_verdict(tmp_path / "s")
    assert {(one.system, one.key) for one in verdict.explained} == {
        ("better", "optimizer.lr"),
        ("better", "optimizer.min_lr"),
    }
    assert verdict.unexplained == []
    for path in (tmp_path / "s" / "confirmation" / "small").glob("same-*/config.yaml"):
        path.write_text(path.read_text().replace('"eps": 1e-05', '"eps": 1e-06'))
    found = build_verdict(tmp_path / "s").unexplained
    assert {(one.system, one.key) for one in found} == {("same", "norm.eps")}


def test_the_page_states_the_numbers_and_no_more(study: Path, tmp_path: Path) -> None:
    page, sentences = write_verdict(study, tmp_path)
    text = (tmp_path / "report.md").read_text()
    words = " ".join(sentences)
    assert "better is 0.58" in words
    assert "nats better than vanilla (95 % interval -0.5" in words
    assert "same and vanilla are equal within the margin of 0.01 nats" in words
    assert "At equal seconds" in words
    assert "At size large vanilla would need 2.02 times the compute of better" in words
    assert "an extrapolation" in words  # the baseline has no run as large
    assert "Other sizes, budgets and data may differ." in words
    for part in (
        "Planned contrasts",
        "Best against best",
        "At equal tokens and seconds",
        "Over sizes",
        "Mechanism",
    ):
        assert f"## {part}" in text
    assert "Missing" not in text
    assert "| vanilla | 0.002 | 0.001, 0.002, 0.004 | no |" in text
    assert page.read_text().count("<svg") == 5
    assert (tmp_path / "contrasts.csv").read_text().count("\n") == 5
    assert "width 32 | width 64" in text


def test_missing_parts_are_named(tmp_path: Path) -> None:
    write_study(tmp_path / "s", stop="ladder")
    write_verdict(tmp_path / "s", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Missing: ladder: 0 of 12 runs." in text
    assert "no fit of L(N) and no compute multiplier: they need three sizes, and 1 have runs" in text


def test_an_incomplete_confirmation_has_differences_but_no_verdict(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "s")
    for path in (tmp_path / "s" / "confirmation").glob("*/*-seed[34]"):
        shutil.rmtree(path)
    _, sentences = write_verdict(tmp_path / "s", tmp_path)
    assert sentences == ["The confirmation is not complete: 6 of 12 runs, so there is no verdict yet."]
    contrasts = pd.read_csv(tmp_path / "contrasts.csv")
    assert set(contrasts["verdict"]) == {"not complete"}
    assert contrasts["difference"].notna().all()
    assert set(contrasts["verdict (paired)"]) == {"not complete"}
    assert contrasts[["p", "p (Holm)", "p (paired)", "p (paired, Holm)"]].isna().all(axis=None)
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| better | van"))
    assert row.startswith("| better | vanilla | 2 |")  # seeds


def test_a_study_before_its_confirmation_shows_nothing_yet(tmp_path: Path) -> None:
    write_study(tmp_path / "s", stop="search")
    _, sentences = write_verdict(tmp_path / "s", tmp_path)
    assert sentences == ["The confirmation has not begun, so the study shows nothing yet."]
    text = (tmp_path / "report.md").read_text()
    assert "Missing: search: 0 of 9 runs; confirmation: not begun; ladder: not begun." in text


def test_a_diverged_confirmation_is_listed_and_not_tested(tmp_path: Path) -> None:
    write_study(
        tmp_path / "s",
        lambda spec: math.inf if (spec.phase, spec.system, spec.seed) == ("confirmation", "same", 2) else loss_of(spec),
    )
    _, sentences = write_verdict(tmp_path / "s", tmp_path)
    assert "same and vanilla are not tested, since a run of same diverged." in sentences
    text = (tmp_path / "report.md").read_text()
    # No mean of the runs that are left: rate, tried, edge, loss of the search, loss confirmed, sd, seeds, diverged.
    row = next(line for line in text.splitlines() if line.startswith("| same | 0.002 |"))
    assert [cell.strip() for cell in row.split("|")][6:10] == ["diverged", "-", "4", "1"]
    assert "| same | 8 | 1,024 | 6.144e+08 | 2.048 | 4 | diverged | - | - |" in text
    assert "a planted spike" in text
    assert "| confirmation | 16 | 16 | 2 |" in text


def test_a_system_that_diverged_at_every_rate_is_not_tested_for_that_reason(tmp_path: Path) -> None:
    write_study(tmp_path / "s", lambda spec: math.inf if spec.system == "same" else loss_of(spec), plan=SMALL)
    _, sentences = write_verdict(tmp_path / "s", tmp_path)
    assert "same and vanilla are not tested, since same diverged at every rate of the search." in sentences
    assert any(sentence.startswith("better is 0.58") for sentence in sentences)


def test_systems_that_vary_unequally_get_the_verdicts_of_paired_tests_in_words(tmp_path: Path) -> None:
    def loss(spec: RunSpec) -> float:
        wild = spec.phase == "confirmation" and spec.system == "better"
        return loss_of(spec) + (0.5 * math.sin(9.0 * spec.seed) if wild else 0.0)

    plan = dataclasses.replace(SMALL, contrasts=[*SMALL.contrasts, ["vanilla", "same"]])
    write_study(tmp_path / "s", loss, plan=plan)
    main = build_verdict(tmp_path / "s").main
    assert main is not None
    assert main.has_unequal_variances
    _, sentences = write_verdict(tmp_path / "s", tmp_path)
    words = next(sentence for sentence in sentences if sentence.startswith("These verdicts assume"))
    sds = {
        pair: stdev(main.losses[pair[0]][seed] - main.losses[pair[1]][seed] for seed in main.losses[pair[0]])
        for pair in (("vanilla", "same"), ("better", "same"), ("vanilla", "better"))
    }
    (least, _), *_, (most, wild) = sorted((sd, pair) for pair, sd in sds.items())
    assert f"(sd {least:.4f} of vanilla and same to {most:.4f} of {' and '.join(wild)}; p " in words
    assert f"; p {format_cell('p', main.p_variances)}): " in words
    changed = "better against vanilla is unresolved, same against vanilla is equal and vanilla against same is equal"
    assert words.endswith(f": by the paired tests, {changed}.")
    row = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| same | van"))
    cells = [cell.strip() for cell in row.split("|")]
    assert (cells[8], cells[11]) == ("unresolved", "equal")


def test_systems_that_vary_alike_need_no_such_sentence(tmp_path: Path) -> None:
    def loss(spec: RunSpec) -> float:
        noise = np.random.default_rng([spec.seed, len(spec.system)]).normal(0, 0.01)
        return 3 + 0.3 * math.log(spec.lr / 2e-3) ** 2 + noise

    write_study(tmp_path / "s", loss, plan=SMALL)
    _, sentences = write_verdict(tmp_path / "s", tmp_path)
    assert not any("vary alike" in sentence for sentence in sentences)
    assert "Test that differences of all pairs vary alike over seeds: p 0." in (tmp_path / "report.md").read_text()


def test_the_picture_of_all_runs_has_a_point_for_each_completed_run_and_the_means() -> None:
    figure = draw_losses({"a": {1: 3.0, 2: 4.0}, "b": {1: math.inf, 2: 5.0}, "c": {1: math.inf}})
    seeds, means = figure.axes[0].lines[:2], figure.axes[0].lines[2:]
    assert [[*zip(*line.get_data(), strict=True)] for line in seeds] == [[(3.0, 0)], [(4.0, 0), (5.0, 1)]]
    assert [line.get_xdata()[0] for line in means] == [3.5]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]


def test_an_amended_plan_is_named_on_the_page(tmp_path: Path) -> None:
    record = write_study(tmp_path / "s")
    record.changes = [{"time": "today", "reason": "a wider margin", "hash": "x", "keys": {"margin": [0.0, 0.01]}}]
    record.write(tmp_path / "s")
    write_verdict(tmp_path / "s", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "The plan changed on today, after the confirmation began: margin was 0.0, is 0.01. a wider margin." in text


def test_labels_of_the_contrasts_fit_into_the_picture(study: Path) -> None:
    main = build_verdict(study).main
    assert main is not None
    long = main.contrasts.assign(system="attnres_stream_block", against="learned_scaling")
    figure = draw_contrasts(long, 0.01, 0.02)
    figure.draw_without_rendering()
    label = figure.axes[0].xaxis.label.get_window_extent()
    assert figure.bbox.x0 <= label.x0
    assert label.x1 <= figure.bbox.x1


def test_figures_draw_more_systems_than_there_are_colors() -> None:
    names = [f"s{i}" for i in range(len(COLORS) + 1)]
    rates = draw_rates({name: Choice(1e-3, {1e-3: 3.0}, is_edge=False) for name in names})
    points = pd.DataFrame({"system": names, "size": "small", "parameters": 1e6, "loss": 3.0})
    for figure in (rates, draw_scaling(points, {})):
        assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == names


def test_a_contrast_that_cannot_be_tested_at_another_budget_is_stated(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, contrasts=[["same", "vanilla"]])

    def loss(spec: RunSpec) -> float:
        at_equal_seconds = spec.phase == "confirmation" and spec.system == "same" and spec.steps == 4
        return math.inf if at_equal_seconds else loss_of(spec)

    write_study(tmp_path, loss, plan=plan)
    _, sentences = write_verdict(tmp_path, tmp_path)
    assert "At equal seconds, same against vanilla is not tested." in sentences
