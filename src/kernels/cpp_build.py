"""Kernels in C++ for the CPU, built when they are first called for, where the machine has a compiler.

A kernel is compiled for its element type and sizes in a second, without torch's headers, and kept in the
user's cache folder. It uses the threads that torch has. Where there is no compiler, or what it makes does
not load, there are no kernels, and callers take their plain path: the same results up to rounding.
A leaf: any room may import it, and keeps its sources itself; `vector.h` is for all of them.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from src.kernels.compile_cache import cache_folder, processor

log = logging.getLogger(__name__)

SHARED = Path(__file__).parent / "include"
SOURCES = SHARED.parents[1]
# Linked to no OpenMP of its own: it finds torch's, and with that its threads.
COMPILE = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-Wno-psabi", f"-I{SHARED}", "-c")
SECONDS = 120  # for the compiler
C_ARGUMENTS = {int: ctypes.c_long, float: ctypes.c_double}  # a pointer otherwise
C_TYPES = {torch.float32: "float", torch.float64: "double"}
LANES_BYTES = 64  # rows are whole vectors of any machine


Argument: TypeAlias = "Tensor | array[int] | int | float | None"


class Kernels:
    """The functions of one source; arguments are contiguous tensors and tables (None: a null), then numbers."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def __call__(self, name: str, *args: Argument) -> None:
        """Run the function `name`."""
        function = getattr(self.library, name)
        if function.argtypes is None:
            function.argtypes = [C_ARGUMENTS.get(type(arg), ctypes.c_void_p) for arg in args]
        function(*[_pointer(arg) if isinstance(arg, Tensor | array) else arg for arg in args])


def kernels_for(x: Tensor, source: str, **sizes: int) -> Kernels | None:
    """The functions of `source` for rows like those of `x`, or None: where they do not serve, or cannot be built.

    A source is named from this package's parent on, without its suffix: `kernels/depth_attention/depth`.
    They serve plain tensors on the CPU; a compiler is given the plain form.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or x.device.type != "cpu":
        return None
    return built_for(x.dtype, x.shape[-1], source, **sizes)


def built_for(dtype: torch.dtype, width: int, source: str, **sizes: int) -> Kernels | None:
    """The functions of `source` for rows of `width`: float32 or float64, and whole vectors."""
    if dtype not in C_TYPES or width * dtype.itemsize % LANES_BYTES:
        return None
    return _built(source, C_TYPES[dtype], tuple(sizes.items()))


def table(numbers: Iterable[int]) -> "array[int]":
    """Numbers for a kernel to read."""
    return array("q", numbers)


def addresses(tensors: Iterable[Tensor]) -> "array[int]":
    """A table of where contiguous tensors begin."""
    return table(map(_pointer, tensors))


@functools.cache
def _built(source: str, real: str, sizes: tuple[tuple[str, int], ...]) -> Kernels | None:
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        log.info("no C++ compiler: everything runs without kernels of its own")
        return None
    defines = [f"-DREAL={real}", *(f"-D{name}={value}" for name, value in sizes)]
    path = SOURCES / f"{source}.cpp"
    command = [compiler, *COMPILE, *defines, str(path)]
    try:
        folder = cache_folder() or Path(tempfile.mkdtemp(prefix="reslab-"))
        made = folder / f"{path.stem}-{_fingerprint(command, path.parent)}.so"
        if not made.exists():
            _compile(command, made)
        return Kernels(ctypes.CDLL(str(made)))
    except (OSError, subprocess.SubprocessError) as error:
        log.info("the kernels of %s cannot be built, which costs speed only: %s", source, error)
        return None


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made, library = f"{folder}/kernels.o", f"{folder}/kernels.so"
        for arguments in ([*command, "-o", made], [command[0], "-shared", made, "-o", library]):
            subprocess.run(arguments, check=True, capture_output=True, timeout=SECONDS)
        Path(library).replace(path)  # at once, for processes that build it at the same time


def _fingerprint(command: list[str], folder: Path) -> str:
    """Of all that the machine code follows from; a home folder may be shared by unlike machines."""
    files = [*sorted(folder.iterdir()), *sorted(SHARED.glob("*.h"))]
    texts = [path.read_text() for path in files if path.suffix in (".cpp", ".h")]
    everything = "\n".join([*command, processor(), *texts])
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def _pointer(x: "Tensor | array[int]") -> int:
    if isinstance(x, array):
        return x.buffer_info()[0]
    assert x.is_contiguous()  # the kernels know sizes, not strides
    return x.data_ptr()
