"""Job array of SLURM, with a stand-in for sbatch that runs the tasks one after the other."""

import os
from pathlib import Path

import pytest

from src.errors import UserError
from src.launch.slurm_array import TASK, run_array

#: Prints the job's number as --parsable does, runs the array, and ends with the highest code as --wait does.
SBATCH = r"""#!/bin/bash
code=0
for word in "$@"; do
  case "$word" in
    --array=*) last="${word##*-}" ;;
    --output=*) output="${word#--output=}" ;;
    --wrap=*) script="${word#--wrap=}" ;;
    --partition=nowhere) echo "sbatch: error: invalid partition specified: nowhere" >&2; exit 1 ;;
  esac
done
echo "17;cluster"
for i in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$i bash -c "$script" >"${output/\%a/$i}" 2>&1 || code=$?
done
exit $code
"""


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bin/sbatch"
    path.parent.mkdir()
    path.write_text(SBATCH)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("sbatch")
def test_every_task_gets_its_number_and_the_words_as_they_are(tmp_path: Path) -> None:
    command = ["printf", "%s|", "it's $HOME", f"a b/{TASK}/c"]
    run_array(command, 3, ["--partition=cpu"], tmp_path / "logs", "prepare.sbatch")
    assert [(tmp_path / f"logs/task-{i}.log").read_text() for i in range(3)] == [
        f"it's $HOME|a b/{i}/c|" for i in range(3)
    ]


@pytest.mark.usefixtures("sbatch")
def test_a_failing_task_and_a_rejected_job_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a task of SLURM job 17 ended with code 3; see .*logs, then run again"):
        run_array(["bash", "-c", f"test {TASK} = 0 || exit 3"], 2, [], tmp_path / "logs", "prepare.sbatch")
    words = r"sbatch rejected the job \(.*invalid partition.*\); correct prepare\.sbatch=\['--partition=nowhere'\]"
    with pytest.raises(UserError, match=words):
        run_array(["true"], 2, ["--partition=nowhere"], tmp_path / "logs", "prepare.sbatch")


def test_a_machine_without_slurm_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="this machine has no sbatch; start it on a login node"):
        run_array(["true"], 2, [], tmp_path / "logs", "prepare.sbatch")
