"""`tests/` mirrors `src/`: the test of `src/<room>/<file>.py` is `tests/<room>/test_<file>.py`.

A module without a test of its own has a line in `COVERED_BY`: the test that covers it imports the module or
names its file. A test of a whole room has a line in `ROOM_WIDE` with what it tests.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Source -> the test that covers it.
COVERED_BY = {
    "src/bench/host_overhead.py": "tests/tasks/test_bench.py",
    "src/bench/peers.py": "tests/benchmarks/test_peers.py",
    "src/launch/stop_request.py": "tests/callbacks/test_stop.py",
    "src/callbacks/stream_log.py": "tests/test_runs.py",
    "src/callbacks/validation.py": "tests/training/test_trainer.py",
    "src/models/formats/llama_folder.py": "tests/models/formats/test_llama.py",
    "src/checks/base.py": "tests/checks/test_checks.py",
    "src/checks/cost.py": "tests/checks/test_checks.py",
    "src/checks/ddp_step.py": "tests/checks/test_checks.py",
    "src/checks/graph.py": "tests/checks/test_checks.py",
    "src/checks/learning.py": "tests/checks/test_checks.py",
    "src/checks/properties.py": "tests/checks/test_checks.py",
    "src/checks/quick.py": "tests/checks/test_checks.py",
    "src/datamodules/fineweb.py": "tests/datamodules/test_token_shards.py",
    "src/datamodules/hub_tokenizer.py": "tests/evaluation/test_hf_equality.py",
    "src/datamodules/open.py": "tests/datamodules/shards/test_local.py",
    "src/datamodules/prepare/assembly.py": "tests/datamodules/prepare/test_parts.py",
    "src/datamodules/prepare/columns.py": "tests/datamodules/prepare/test_documents.py",
    "src/datamodules/prepare/csv_rows.py": "tests/datamodules/prepare/test_documents.py",
    "src/datamodules/prepare/discovery.py": "tests/datamodules/prepare/test_documents.py",
    "src/datamodules/prepare/first_rows.py": "tests/datamodules/prepare/test_documents.py",
    "src/datamodules/prepare/json_array.py": "tests/datamodules/prepare/test_documents.py",
    "src/datamodules/prepare/progress.py": "tests/datamodules/prepare/test_prepare.py",
    "src/datamodules/prepare/sources.py": "tests/datamodules/prepare/test_prepare.py",
    "src/datamodules/prepare/tokenize_pool.py": "tests/datamodules/prepare/test_prepare.py",
    "src/datamodules/prepare/writer.py": "tests/datamodules/prepare/test_prepare.py",
    "src/datamodules/remote/cache.py": "tests/datamodules/remote/test_store.py",
    "src/datamodules/remote/prefetch.py": "tests/datamodules/remote/test_store.py",
    "src/datamodules/shards/loader.py": "tests/datamodules/test_contract.py",
    "src/datamodules/shards/manifest.py": "tests/datamodules/prepare/test_prepare.py",
    "src/datamodules/tokenization/base.py": "tests/datamodules/tokenization/test_byte_level.py",
    "src/datamodules/tokenization/gpt2.py": "tests/datamodules/tokenization/test_open.py",
    "src/datamodules/shards/windows.py": "tests/datamodules/shards/test_stream.py",
    "src/embedding/value_tables.py": "tests/embedding/test_value_embed.py",
    "src/evaluation/sources.py": "tests/evaluation/test_perplexity.py",
    "src/evaluation/suite.py": "tests/evaluation/test_perplexity.py",
    "src/kernels/attention/reference.py": "tests/kernels/attention/test_cpp.py",
    "src/kernels/brgemm.py": "tests/kernels/attention/test_cpp.py",
    "src/kernels/cross_entropy/reference.py": "tests/kernels/cross_entropy/test_chunked.py",
    "src/kernels/cross_entropy/triton_launch.py": "tests/kernels/cross_entropy/test_triton_kernels.py",
    "src/kernels/depth_attention/eager.py": "tests/kernels/depth_attention/test_blocked.py",
    "src/kernels/depth_attention/ops.py": "tests/kernels/depth_attention/test_blocked.py",
    "src/kernels/depth_attention/reference.py": "tests/kernels/depth_attention/test_blocked.py",
    "src/kernels/depth_attention/running_sum.py": "tests/kernels/depth_attention/test_cpp.py",
    "src/kernels/depth_attention/static_sum.py": "tests/kernels/depth_attention/test_cpp.py",
    "src/kernels/depth_attention/triton_launch.py": "tests/kernels/depth_attention/test_triton_kernels.py",
    "src/kernels/hyper_streams/dhc_triton.py": "tests/kernels/hyper_streams/test_recompute.py",
    "src/kernels/hyper_streams/mhc_triton.py": "tests/kernels/hyper_streams/test_recompute.py",
    "src/kernels/hyper_streams/projection.py": "tests/kernels/hyper_streams/test_mhc.py",
    "src/kernels/hyper_streams/reference.py": "tests/kernels/hyper_streams/test_dhc.py",
    "src/kernels/hyper_streams/triton_common.py": "tests/kernels/hyper_streams/test_recompute.py",
    "src/kernels/hyper_streams/triton_launch.py": "tests/kernels/hyper_streams/test_recompute.py",
    "src/launch/worker.py": "tests/launch/test_elastic.py",
    "src/models/block.py": "tests/models/test_norm_placement.py",
    "src/models/flops.py": "tests/models/test_gpt.py",
    "src/models/formats/parts.py": "tests/models/formats/test_pretrained.py",
    "src/models/formats/portable/configuration.py": "tests/models/formats/portable/test_modeling.py",
    "src/models/formats/portable/modules.py": "tests/models/formats/portable/test_bundle.py",
    "src/models/formats/recipe.py": "tests/models/formats/test_pretrained.py",
    "src/models/formats/folder.py": "tests/models/formats/test_huggingface.py",
    "src/models/loops.py": "tests/recurrence/test_looped.py",
    "src/models/repeated_visits.py": "tests/recurrence/test_mini.py",
    "src/norm/affine.py": "tests/norm/test_contract.py",
    "src/recurrence/repeated_layers.py": "tests/recurrence/test_delayed_repeat.py",
    "src/reporting/analysis.py": "tests/tasks/test_analyze.py",
    "src/reporting/analysis_curves.py": "tests/tasks/test_analyze.py",
    "src/reporting/analysis_figures.py": "tests/tasks/test_analyze.py",
    "src/reporting/conditions.py": "tests/reporting/test_report.py",
    "src/reporting/coordinates.py": "tests/checks/test_coordinates.py",
    "src/reporting/curves.py": "tests/reporting/test_report.py",
    "src/reporting/document.py": "tests/reporting/test_report.py",
    "src/reporting/figures.py": "tests/reporting/test_report.py",
    "src/reporting/page.py": "tests/reporting/test_report.py",
    "src/reporting/systems.py": "tests/reporting/test_report.py",
    "src/reporting/tables.py": "tests/reporting/test_report.py",
    "src/reporting/bench_figure.py": "tests/tasks/test_bench.py",
    "src/reporting/stream_figures.py": "tests/test_runs.py",
    "src/residual/families/delta_attention.py": "tests/residual/test_delta_attnres.py",
    "src/residual/families/delta_rule.py": "tests/residual/test_deep_delta.py",
    "src/residual/families/head_norms.py": "tests/residual/test_hybridnorm.py",
    "src/residual/families/siamese_streams.py": "tests/residual/test_siamesenorm_deit.py",
    "src/residual/families/groups.py": "tests/residual/test_attnres_block.py",
    "src/residual/families/branch.py": "tests/residual/test_composed.py",
    "src/residual/families/hyper_connections.py": "tests/residual/test_hyperconn.py",
    "src/residual/families/low_rank.py": "tests/residual/test_laurel_lr.py",
    "src/residual/families/mudd_weights.py": "tests/residual/test_muddformer.py",
    "src/residual/families/permutation_streams.py": "tests/residual/test_mhc_lite.py",
    "src/residual/families/shared_norm.py": "tests/residual/test_parallel.py",
    "src/residual/families/single_stream.py": "tests/residual/test_contract.py",
    "src/residual/families/stream_attention.py": "tests/residual/test_attnres_stream_block.py",
    "src/residual/families/value_residual.py": "tests/residual/test_resformer.py",
    "src/residual/families/warmup_schedules.py": "tests/residual/test_prores.py",
    "src/settings/safety.py": "tests/settings/test_validate.py",
    "src/study/comparison_sections.py": "tests/study/test_verdict.py",
    "src/study/describe.py": "tests/tasks/test_study.py",
    "src/study/figures.py": "tests/study/test_verdict.py",
    "src/study/page.py": "tests/study/test_verdict.py",
    "src/study/plan.py": "tests/study/test_phases.py",
    "src/study/scaling.py": "tests/study/test_verdict.py",
    "src/study/scaling_sections.py": "tests/study/test_verdict.py",
    "src/study/words.py": "tests/study/test_verdict.py",
    "src/tasks/check.py": "tests/checks/test_checks.py",
    "src/tasks/model_card.py": "tests/tasks/test_export.py",
    "src/tasks/tokenizer.py": "tests/datamodules/tokenization/test_train.py",
    "src/tasks/train.py": "tests/test_runs.py",
    "src/training/run.py": "tests/training/test_trainer.py",
    "src/training/saved_weights.py": "tests/tasks/test_evaluate.py",
}

#: Tests of several files of a room, or of files outside of src.
ROOM_WIDE = {
    "tests/launch/test_launchers.py": "runs under torchrun, and beside variables that a launcher left behind",
    "tests/launch/test_slurm.py": "documented batch scripts on two virtual nodes",
    "tests/test_fidelity.py": "every method states its source, and an oracle names it",
    "tests/checks/test_checks.py": "planted faults, each caught by its check",
    "tests/datamodules/remote/test_s3.py": "an S3 server on loopback",
    "tests/datamodules/test_mutations.py": "any mutation of a shard",
    "tests/embedding/test_benchmark.py": "embeddings written for the benchmark",
    "tests/evaluation/test_hf_equality.py": "the adapter beside lm-eval's own model",
    "tests/kernels/attention/test_fixed_shapes.py": "the order in which torch tries its kernels",
    "tests/kernels/depth_attention/test_compiles.py": "the Triton kernels, compiled for a GPU",
    "tests/models/test_norm_placement.py": "placements of norms in a block",
    "tests/recurrence/test_runs.py": "whole runs with repeated visits",
    "tests/residual/test_inject.py": "injections under every strategy",
    "tests/residual/test_memory.py": "saved bytes of every strategy",
    "tests/settings/test_validate.py": "any value of any key, by Hypothesis",
    "tests/tasks/test_elastic.py": "a run whose ranks come and go",
    "tests/test_arrows.py": "imports between rooms",
    "tests/test_axes.py": "combinations of options",
    "tests/test_bits.py": "losses of version 0.1.0",
    "tests/test_docs.py": "commands and links of the documentation",
    "tests/test_language.py": "words of the code",
    "tests/test_mirror.py": "tests that mirror src",
    "tests/test_prepared.py": "the forks in which tests run",
    "tests/test_runs.py": "whole runs from outside",
    "tests/test_wheel.py": "the installed package, which `setup.py` builds",
    "tests/training/test_stored_run.py": "run folders of version 0.1.0",
}

#: Folders of tests that mirror no room of src: the folder benchmarks, and faults in whole runs.
OTHER_FOLDERS = ("benchmarks", "robust")

SOURCES = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "src").rglob("*.py") if p.name != "__init__.py")
TESTS = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py"))


def own_test(source: str) -> str:
    """Return the path of a module's own test."""
    folder, _, name = source.removeprefix("src/").rpartition("/")
    return f"tests/{folder}/test_{name}" if folder else f"tests/test_{name}"


def is_contract(source: str) -> bool:
    """Return whether a module is the contract of a room that a test checks on every option."""
    folder, _, name = source.removeprefix("src/").rpartition("/")
    return name == "base.py" and f"tests/{folder}/test_contract.py" in TESTS


def mentions(test: str, source: str) -> bool:
    """Return whether a test imports a module or names its file, such as `curves.py`."""
    text = (ROOT / test).read_text()
    module = source.removesuffix(".py").replace("/", ".")
    imported = {
        name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        for name in (node.module, f"{node.module}.{alias.name}")
    }
    named = re.search(rf"[`/]{re.escape(source.rpartition('/')[2])}\b", text)
    return module in imported or named is not None


def test_every_module_has_a_test_of_its_own_or_is_covered_by_another() -> None:
    covered = {source for source in SOURCES if source in COVERED_BY or is_contract(source)}
    own = {source for source in SOURCES if own_test(source) in TESTS}
    assert sorted(own & covered) == [], "have a test of their own; their lines in COVERED_BY go"
    assert sorted({*SOURCES} - own - covered) == [], "write their tests, or name the tests that cover them"


def test_a_covering_test_mentions_the_module() -> None:
    assert set(COVERED_BY) <= set(SOURCES)
    assert [source for source, test in COVERED_BY.items() if not mentions(test, source)] == []


def test_a_family_is_covered_by_the_test_of_a_strategy_that_imports_it() -> None:
    for source, test in COVERED_BY.items():
        if (
            source.startswith("src/residual/families/") and test != "tests/residual/test_contract.py"
        ):  # of all strategies
            strategy = ROOT / "src/residual" / test.rpartition("test_")[2]
            module = source.removesuffix(".py").replace("/", ".")
            assert module in strategy.read_text(), f"{strategy.name} has no {source}"


def test_every_test_names_a_module_or_is_room_wide() -> None:
    mirrors = {test for test in TESTS if test.endswith("/test_contract.py")} | {own_test(source) for source in SOURCES}
    others = {test for test in TESTS if test in ROOM_WIDE or test.split("/")[1] in OTHER_FOLDERS}
    assert sorted(mirrors & others) == []
    assert sorted({*TESTS} - mirrors - others) == []


def test_the_exceptions_exist() -> None:
    assert set(ROOM_WIDE) <= set(TESTS)
