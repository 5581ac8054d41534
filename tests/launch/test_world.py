"""The world of a process: what launchers state about it, and what left-over variables do not."""

import pytest

from src.errors import UserError
from src.launch.world import World, read_world

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "abc",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "2",
    "TORCHELASTIC_RESTART_COUNT": "1",
}
SRUN = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
#: What an interactive shell, a batch script of one task or an earlier program leaves behind.
LEFT_OVER = [
    {},
    {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    {"LOCAL_RANK": "0"},
    {"RANK": "1"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train"},
    {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NAME": "bash"},
    {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"},
]


def test_ranks_that_the_job_launched_keep_the_id_of_their_batch_job() -> None:
    world = read_world({**TORCHRUN, **SRUN, "TORCHELASTIC_RUN_ID": "reslab"})
    assert world == World("reslab", 3, 1, 4, 2, 0, "17")


def test_torchruns_variables_count() -> None:
    world = read_world(TORCHRUN)
    assert world == World("torchrun", 3, 1, 4, 2, 1, "abc")
    assert (world.n_node, world.is_launched) == (2, True)


def test_the_tasks_of_a_slurm_step_count() -> None:
    world = read_world(SRUN)
    assert world == World("slurm", 2, 0, 4, 2, 0, "17")
    assert world.n_node == 2


def test_torchrun_inside_a_slurm_step_counts_before_it() -> None:
    assert read_world({**SRUN, **TORCHRUN}).launcher == "torchrun"


def test_ranks_of_another_launcher_count_if_there_are_several() -> None:
    assert read_world({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}) == World("other", 1, 1, 2, 2)


@pytest.mark.parametrize("env", LEFT_OVER, ids=lambda env: "-".join(env) or "nothing")
def test_left_over_variables_start_nothing(env: dict[str, str]) -> None:
    world = read_world(env)
    assert (world.launcher, world.rank, world.size, world.is_launched) == ("none", 0, 1, False)


def test_a_requeued_batch_script_knows_its_job() -> None:
    world = read_world({"SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2", "SLURM_PROCID": "0"})
    assert (world.restarts, world.job) == (2, "17")


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "contradict each other: rank 2 of 2"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "3"}, "contradict each other: rank 3 of 4, local rank 1 of 3"),
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "3"}, "srun started 3 tasks on 2 nodes"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number, got 'two'; unset it"),
    ],
)
def test_contradictions_are_one_sentence(env: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_world(env)
