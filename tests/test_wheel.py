"""Installed package `reslab`, as `setup.py` builds it."""

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from src.models.formats.pretrained import write_pretrained
from tests.models.formats.test_pretrained import recipe, trained
from tests.support import ROOT, options, tokens

NEEDED = ("setup.py", "pyproject.toml", "README.md")


def copy_of_the_checkout(folder: Path) -> Path:
    """Copy what the build reads, since it writes beside it."""
    for name in NEEDED:
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    shutil.copytree(ROOT / "conf", folder / "conf")
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder with the built package, first on the path of this process."""
    checkout = copy_of_the_checkout(tmp_path_factory.mktemp("checkout"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(checkout)
        patch.setattr(sys, "argv", ["setup.py", "-q", "build_py", "--build-lib", "built"])
        runpy.run_path("setup.py", run_name="__main__")
        patch.syspath_prepend(checkout / "built")
        yield checkout / "built"
    for name in [name for name in sys.modules if name.partition(".")[0] == "reslab"]:
        del sys.modules[name]


def test_the_package_loads_an_export_with_the_same_logits(built: Path, tmp_path: Path) -> None:
    gpt = trained({"residual": "mhc"})
    write_pretrained(gpt, recipe({"residual": "mhc"}), tmp_path)
    reslab: Any = importlib.import_module("reslab")
    model = reslab.from_pretrained(tmp_path)
    assert torch.equal(model(tokens()), gpt(tokens()))
    assert type(model.residual).__module__ == "reslab.residual.mhc"
    assert reslab.strategies() == options("residual")
    assert reslab.build("hyperconn", model="tiny", n_layer=1, n_embd=8, vocab_size=64)(tokens()).shape == (3, 12, 64)


def test_the_package_exports_the_same_code(built: Path, tmp_path: Path) -> None:
    reslab: Any = importlib.import_module("reslab")
    for folder, write in (("here", write_pretrained), ("package", reslab.write_pretrained)):
        (tmp_path / folder).mkdir()
        write(trained({"residual": "mhc"}), recipe({"residual": "mhc"}), tmp_path / folder)
    here, package = ({p.name: p.read_bytes() for p in (tmp_path / f).iterdir()} for f in ("here", "package"))
    assert here == package


def test_no_module_of_the_package_imports_the_checkout(built: Path) -> None:
    modules = sorted((built / "reslab").rglob("*.py"))
    assert len(modules) > 100
    assert not [path for path in modules if re.search(r"^\s*(from|import) src\b", path.read_text(), re.MULTILINE)]
    assert {path.name for path in (built / "reslab").iterdir() if path.is_dir()} - {"__pycache__"} == {
        *("conf", "embedding", "kernels", "models", "norm", "recurrence", "residual")
    }
    for name in ("kernels/hyper_streams/mhc.cpp", "kernels/include/vector.h", "conf/residual/mhc.yaml"):
        assert (built / "reslab" / name).is_file()


@pytest.mark.stress
def test_the_wheel_installs_alone_and_loads_an_export(tmp_path: Path) -> None:
    """Install the wheel without its dependencies, which this process's environment lends."""
    (tmp_path / "checkout").mkdir()
    checkout, site = copy_of_the_checkout(tmp_path / "checkout"), tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(checkout)]
    subprocess.run(pip, check=True, cwd=tmp_path)
    gpt = trained({"residual": "mhc"})
    (tmp_path / "hub").mkdir()
    write_pretrained(gpt, recipe({"residual": "mhc"}), tmp_path / "hub")
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import json, reslab, torch\n"
        f"model = reslab.from_pretrained({str(tmp_path / 'hub')!r})\n"
        f"print(json.dumps(model(torch.tensor({tokens().tolist()})).tolist()))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert torch.allclose(torch.tensor(json.loads(done.stdout.splitlines()[-1])), gpt(tokens()), atol=1e-5, rtol=0)
